"""Quantizers: a float checkpoint and a recipe in, a quantized checkpoint out, layer by layer.

A recipe (``recipe.py``) is four things: *edits* that keep the function and make weights easier to
round (scale, rotate), a *rounding*, a rule for the inputs, and a list of layers that stay float.
Each method is one file with its equation and its origin: a pure function of weights and the
statistics of their inputs (``stats.py``) to new weights or to the codes of a ``QTensor``.

``skeleton.py`` is the model without its weights, transformers' own decoder layers on the meta
device; ``loop.py`` fills one layer at a time from the mapped file, lets the calibration text of
the ``chain`` through it, rounds it and writes it (``outputs/``). Memory is that of one decoder
layer and its activations, whatever the model's size, and a killed run goes on after the last layer.

torch and transformers (the extra ``torch``) are imported when a method runs, never before.
"""
