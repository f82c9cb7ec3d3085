/* AMX in plain C: tile configuration (palette 1), tile load, store and zero, and TDPBF16PS.
 *
 * After the operation sections of Intel's Software Developer's Manual. Tiles belong to the thread;
 * only as many rows and bytes as the configuration names are touched; what the CPU would refuse
 * (#UD, #GP) is kept as a message instead. Products run as the CPU's do: even and odd members of
 * the pairs summed apart, rounding to nearest even, denormals as zero in and out. */

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };

struct config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
_Static_assert(sizeof(struct config) == 64, "as the CPU reads it");

static _Thread_local struct config now;
static _Thread_local uint8_t tile[TILES][ROWS][BYTES];

/* What the tests read and set. */
_Atomic int amx_configured, amx_released, amx_products, amx_asked, amx_permitted;
const char *_Atomic amx_fault;

static int refuse(const char *why) {
  amx_fault = why;
  return 0;
}

static int usable(uint8_t t) {
  if (now.palette != 1) return refuse("tiles are used without a configuration");
  if (t >= TILES) return refuse("no such tile");
  if (now.rows[t] == 0 || now.bytes[t] == 0) return refuse("the tile is not configured");
  return 1;
}

long emulated_syscall(long number, long code, long argument) {
  if (number != 158 || code != 0x1023 || argument != 18) return -1;
  amx_asked++;
  return amx_permitted ? 0 : -1;
}

int emulated_ldtilecfg(const void *memory) {
  struct config new;
  memcpy(&new, memory, sizeof new);
  if (new.palette != 1) return refuse("the palette is not 1");
  if (new.start_row != 0) return refuse("the start row is not 0");
  for (int i = 0; i < 14; i++)
    if (new.reserved[i] != 0) return refuse("a reserved byte of the configuration is not 0");
  for (int t = 0; t < 16; t++) {
    if (new.rows[t] > ROWS || new.bytes[t] > BYTES) return refuse("a tile is too large");
    if ((new.rows[t] == 0) != (new.bytes[t] == 0)) return refuse("a tile has rows or bytes alone");
    if (t >= TILES && new.rows[t] != 0) return refuse("palette 1 has eight tiles");
  }
  now = new;
  memset(tile, 0, sizeof tile);
  amx_configured++;
  return 0;
}

int emulated_tilerelease(void) {
  memset(&now, 0, sizeof now);
  memset(tile, 0, sizeof tile);
  amx_released++;
  return 0;
}

int emulated_tilezero(uint8_t t) {
  if (usable(t)) memset(tile[t], 0, sizeof tile[t]);
  return 0;
}

int emulated_tileloadd64(uint8_t t, const uint8_t *from, int64_t stride) {
  if (!usable(t)) return 0;
  memset(tile[t], 0, sizeof tile[t]);
  for (int r = 0; r < now.rows[t]; r++) memcpy(tile[t][r], from + r * stride, now.bytes[t]);
  return 0;
}

int emulated_tilestored64(uint8_t t, uint8_t *to, int64_t stride) {
  if (!usable(t)) return 0;
  for (int r = 0; r < now.rows[t]; r++) memcpy(to + r * stride, tile[t][r], now.bytes[t]);
  return 0;
}

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }

static float wide(const uint8_t *bfloat16) {
  uint16_t half;
  memcpy(&half, bfloat16, sizeof half);
  uint32_t bits = (uint32_t)half << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return flushed(x);
}

int emulated_tdpbf16ps(uint8_t sums, uint8_t a, uint8_t b) {
  if (!usable(sums) || !usable(a) || !usable(b)) return 0;
  if (sums == a || sums == b || a == b) return refuse("a product needs three different tiles");
  if (now.rows[sums] != now.rows[a]) return refuse("sums and A differ in rows");
  if (now.bytes[sums] != now.bytes[b]) return refuse("sums and B differ in columns");
  if (now.bytes[a] != 4 * now.rows[b]) return refuse("A's pairs are not B's rows");
  if (now.bytes[sums] % 4) return refuse("a row is no whole number of float32");
  int columns = now.bytes[sums] / 4;
  for (int m = 0; m < now.rows[sums]; m++) {
    float even[16] = {0}, odd[16] = {0}, old[16];
    for (int k = 0; k < now.rows[b]; k++) {
      float x = wide(tile[a][m] + 4 * k), y = wide(tile[a][m] + 4 * k + 2);
      for (int n = 0; n < columns; n++) {
        even[n] = flushed(fmaf(x, wide(tile[b][k] + 4 * n), even[n]));
        odd[n] = flushed(fmaf(y, wide(tile[b][k] + 4 * n + 2), odd[n]));
      }
    }
    memcpy(old, tile[sums][m], sizeof old);
    memset(tile[sums][m], 0, BYTES);
    for (int n = 0; n < columns; n++)
      old[n] = flushed(flushed(old[n]) + flushed(even[n] + odd[n]));
    memcpy(tile[sums][m], old, 4 * columns);
  }
  memset(tile[sums][now.rows[sums]], 0, (ROWS - now.rows[sums]) * BYTES);
  amx_products++;
  return 0;
}
