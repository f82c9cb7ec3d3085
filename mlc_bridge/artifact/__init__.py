"""The MLC model directory, both directions: config, weights, and what binds a lib to them."""
