// CUDA C as TVM prints it, run on a CPU: one block after another, every thread a fiber.
//
// Threads run one at a time until they meet: at __syncthreads (all threads of the block) or in an
// instruction that a warp executes together (ldmatrix, mma), where the last of the 32 lanes does the
// work for all, after the layouts that the PTX manual gives. Copies started by cp.async arrive only
// when their thread waits for them. Threads take turns in rising or falling order (`backwards`), so
// that a missing barrier or wait shows as a difference between two runs.

#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

using uint = unsigned;
using uchar = unsigned char;

// -- types ------------------------------------------------------------------------------------

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };

inline float from_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint32_t to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

// A small float of `E` exponent and `M` mantissa bits, rounded to nearest, ties to even.
template <int E, int M>
inline uint32_t round_small(float value, bool infinite, uint32_t largest) {
  uint32_t bits = to_bits(value), sign = bits >> 31 << (E + M);
  double size = std::fabs((double)value);
  const int bias = (1 << (E - 1)) - 1;
  if (std::isnan(value)) return sign | ((1u << (E + M)) - 1);
  int exponent = size == 0 ? -1000 : std::ilogb(size);
  if (exponent < 1 - bias) exponent = 1 - bias;
  double steps = std::nearbyint(std::ldexp(size, M - exponent));
  if (steps >= (2 << M)) { steps /= 2; exponent += 1; }
  uint32_t code = steps < (1 << M)
      ? (uint32_t)steps : ((uint32_t)(exponent + bias) << M) + ((uint32_t)steps - (1u << M));
  if (exponent + bias > (1 << E) - 1 || code > largest)
    code = infinite ? ((1u << E) - 1) << M : largest;
  return sign | code;
}

template <int E, int M>
inline float value_small(uint32_t code, bool infinite) {
  const int bias = (1 << (E - 1)) - 1;
  int exponent = code >> M & ((1 << E) - 1), mantissa = code & ((1 << M) - 1);
  float sign = code >> (E + M) & 1 ? -1.f : 1.f;
  if (infinite && exponent == (1 << E) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp((float)mantissa, 1 - bias - M);
  return sign * std::ldexp((float)(mantissa + (1 << M)), exponent - bias - M);
}

#define FLOAT_TYPE(NAME, WORD, E, M, INFINITE, LARGEST)                                       \
  struct NAME {                                                                               \
    WORD __x;                                                                                 \
    NAME() = default;                                                                         \
    template <typename T> explicit NAME(T v)                                                  \
        : __x(round_small<E, M>((float)v, INFINITE, LARGEST)) {}                              \
    operator float() const { return value_small<E, M>(__x, INFINITE); }                       \
  };                                                                                          \
  inline NAME operator+(NAME a, NAME b) { return NAME((float)a + (float)b); }                 \
  inline NAME operator-(NAME a, NAME b) { return NAME((float)a - (float)b); }                 \
  inline NAME operator*(NAME a, NAME b) { return NAME((float)a * (float)b); }

FLOAT_TYPE(half, uint16_t, 5, 10, true, 0x7bff)
FLOAT_TYPE(nv_bfloat16, uint16_t, 8, 7, true, 0x7f7f)
FLOAT_TYPE(__nv_fp8_e4m3, uint8_t, 4, 3, false, 0x7e)
FLOAT_TYPE(__nv_fp8_e5m2, uint8_t, 5, 2, false, 0x7b)

template <typename T> struct Pair {
  T x, y;
  Pair() = default;
  Pair(T x, T y) : x(x), y(y) {}
};
using __half = half;
using __half2 = Pair<half>;
using half2 = __half2;
using __nv_bfloat16 = nv_bfloat16;
using nv_bfloat162 = Pair<nv_bfloat16>;
using __nv_bfloat162 = nv_bfloat162;

template <typename T> Pair<T> __hsub2(Pair<T> a, Pair<T> b) {
  return {a.x - b.x, a.y - b.y};
}
template <typename T> Pair<T> __hmul2(Pair<T> a, Pair<T> b) {
  return {a.x * b.x, a.y * b.y};
}
inline half __float2half_rn(float f) { return half(f); }
inline nv_bfloat16 __float2bfloat16_rn(float f) { return nv_bfloat16(f); }

inline __half2 __floats2half2_rn(float x, float y) { return {half(x), half(y)}; }
inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {nv_bfloat16(x), nv_bfloat16(y)};
}
inline float __fdividef(float a, float b) { return a / b; }
inline float exp2_near(float x) { float r = exp2f(x); return r < 1.17549435e-38f ? 0 : r; }

template <typename T> std::enable_if_t<std::is_arithmetic_v<T>, T> min(T a, T b) { return b < a ? b : a; }
template <typename T> std::enable_if_t<std::is_arithmetic_v<T>, T> max(T a, T b) { return a < b ? b : a; }

// -- threads ----------------------------------------------------------------------------------

namespace cpu {

constexpr size_t STACK = 128 << 10;
constexpr int LANES = 32;

struct Copy { void* to; const void* from; int size, group; };

struct Thread {
  ucontext_t context;
  uint3 index;
  int number;
  bool done;
  std::vector<Copy> copies;
  int group;
};

struct Meeting {  // of the 32 lanes of a warp
  const char* name;
  int arrived, round;
  void* arguments[LANES];
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<Meeting> meetings;
inline Thread* current;
inline uint3 block, block_size, grid_size;
inline int at_barrier, barriers;
inline const std::function<void()>* kernel;

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "cuda_on_cpu: %s\n", what);
  abort();
}

inline void pause() { swapcontext(&current->context, &scheduler); }

inline void entry() {
  (*kernel)();
  current->done = true;
}

// The last lane to come calls `work` with every lane's arguments.
template <typename Arguments, typename Work>
void together(const char* name, Arguments& mine, Work work) {
  Meeting& m = meetings[current->number / LANES];
  if (m.arrived && m.name != name) fail("lanes of one warp meet in different instructions");
  m.name = name;
  m.arguments[current->number % LANES] = &mine;
  int round = m.round;
  if (++m.arrived == LANES) {
    Arguments* all[LANES];
    for (int i = 0; i < LANES; i++) all[i] = (Arguments*)m.arguments[i];
    work(all);
    m.arrived = 0;
    m.round++;
  } else {
    while (m.round == round) pause();
  }
}

inline void launch(uint3 grid, uint3 size, bool backwards, std::function<void()> body) {
  const int count = size.x * size.y * size.z;
  static std::vector<char> stacks;
  stacks.resize(STACK * count);
  grid_size = grid;
  block_size = size;
  kernel = &body;
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; b++) {
    block = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    threads.assign(count, Thread{});
    meetings.assign((count + LANES - 1) / LANES, Meeting{});
    at_barrier = barriers = 0;
    for (int i = 0; i < count; i++) {
      Thread& t = threads[i];
      t.number = i;
      t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = stacks.data() + STACK * i;
      t.context.uc_stack.ss_size = STACK;
      t.context.uc_link = &scheduler;
      makecontext(&t.context, entry, 0);
    }
    for (int left = count, idle = 0; left; idle++) {
      if (idle == 3) fail("a thread waits for one that never comes");
      int before = barriers;
      int rounds = 0;
      for (auto& m : meetings) rounds += m.round;
      for (int i = 0; i < count; i++) {
        current = &threads[backwards ? count - 1 - i : i];
        if (current->done) continue;
        swapcontext(&scheduler, &current->context);
        if (current->done) { left--; idle = 0; }
      }
      for (auto& m : meetings) rounds -= m.round;
      if (barriers != before || rounds) idle = 0;
    }
  }
}

}  // namespace cpu

#define threadIdx (cpu::current->index)
#define blockIdx (cpu::block)
#define blockDim (cpu::block_size)
#define gridDim (cpu::grid_size)

inline void __syncthreads() {
  int round = cpu::barriers;
  if (++cpu::at_barrier == (int)cpu::threads.size()) {
    cpu::at_barrier = 0;
    cpu::barriers++;
  } else {
    while (cpu::barriers == round) cpu::pause();
  }
}

// -- the instructions behind our device functions ---------------------------------------------

inline void copy_async_16(void* to, const void* from, int size) {
  if ((uintptr_t)to % 16 || (size && (uintptr_t)from % 16)) cpu::fail("cp.async: not aligned");
  cpu::current->copies.push_back({to, from, size, cpu::current->group});
}

inline void copy_async_close() { cpu::current->group++; }

inline void copy_async_wait(int left) {
  auto& copies = cpu::current->copies;
  std::vector<cpu::Copy> later;
  for (auto& c : copies) {
    if (c.group >= cpu::current->group - left) { later.push_back(c); continue; }
    memset(c.to, 0, 16);
    memcpy(c.to, c.from, c.size);
  }
  copies = later;
}
inline void copy_async_wait_0() { copy_async_wait(0); }
inline void copy_async_wait_1() { copy_async_wait(1); }
inline void copy_async_wait_2() { copy_async_wait(2); }
inline void copy_async_wait_3() { copy_async_wait(3); }

template <typename T> struct Given { T mine, out; int lane; };

// Every lane gives a value and receives the one of the lane it names.
template <typename T> T exchange(const char* name, T value, int lane) {
  Given<T> mine{value, value, lane};
  cpu::together(name, mine, [](Given<T>** lanes) {
    for (int i = 0; i < 32; i++) lanes[i]->out = lanes[lanes[i]->lane & 31]->mine;
  });
  return mine.out;
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
  static const char name[] = "shfl.xor";
  return exchange(name, value, (cpu::current->number % 32) ^ mask);
}
template <typename T> T __shfl_sync(unsigned, T value, int lane) {
  static const char name[] = "shfl";
  return exchange(name, value, lane);
}
inline int __reduce_max_sync(unsigned, int value) {
  static const char name[] = "reduce.max";
  Given<int> mine{value, value, 0};
  cpu::together(name, mine, [](Given<int>** lanes) {
    int top = lanes[0]->mine;
    for (int i = 1; i < 32; i++) top = max(top, lanes[i]->mine);
    for (int i = 0; i < 32; i++) lanes[i]->out = top;
  });
  return mine.out;
}

struct Squares { unsigned* to; const void* row; };

inline void load_squares_any(const char* name, unsigned* to, const void* row, bool transposed) {
  if ((uintptr_t)row % 16) cpu::fail("ldmatrix: not aligned");
  Squares mine{to, row};
  cpu::together(name, mine, [transposed](Squares** lanes) {
    for (int lane = 0; lane < 32; lane++)
      for (int square = 0; square < 4; square++) {
        uint16_t value[2];
        for (int i = 0; i < 2; i++) {
          int r = lane / 4, c = lane % 4 * 2 + i;
          if (transposed) std::swap(r, c);
          value[i] = ((const uint16_t*)lanes[square * 8 + r]->row)[c];
        }
        lanes[lane]->to[square] = value[0] | (unsigned)value[1] << 16;
      }
  });
}
inline void load_squares(unsigned* to, const void* row) {
  static const char name[] = "ldmatrix";
  load_squares_any(name, to, row, false);
}
inline void load_squares_t(unsigned* to, const void* row) {
  static const char name[] = "ldmatrix.trans";
  load_squares_any(name, to, row, true);
}

struct Product { float* d; unsigned a[4], b[2]; };

// D[16, 8] += A[16, K] B[K, 8]; T has 4 / sizeof(T) elements in a register, K is 8 registers' worth.
template <typename T>
void multiply(const char* name, float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
              unsigned b0, unsigned b1) {
  constexpr int E = 4 / sizeof(T), K = 8 * E;
  Product mine{d, {a0, a1, a2, a3}, {b0, b1}};
  cpu::together(name, mine, [](Product** lanes) {
    static float a[16][K], b[K][8];
    for (int lane = 0; lane < 32; lane++) {
      int g = lane / 4, t = lane % 4;
      for (int reg = 0; reg < 4; reg++)
        for (int i = 0; i < E; i++) {
          T value;
          memcpy(&value, (char*)&lanes[lane]->a[reg] + i * sizeof(T), sizeof(T));
          a[g + reg % 2 * 8][t * E + i + reg / 2 * 4 * E] = value;
        }
      for (int reg = 0; reg < 2; reg++)
        for (int i = 0; i < E; i++) {
          T value;
          memcpy(&value, (char*)&lanes[lane]->b[reg] + i * sizeof(T), sizeof(T));
          b[t * E + i + reg * 4 * E][g] = value;
        }
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = lanes[lane]->d[i];
        for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
        lanes[lane]->d[i] = sum;
      }
  });
}
#define MULTIPLY(NAME, T)                                                                      \
  inline void NAME(float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,  \
                   unsigned b1) {                                                              \
    static const char name[] = #NAME;                                                          \
    multiply<T>(name, d, a0, a1, a2, a3, b0, b1);                                              \
  }
MULTIPLY(mma_f16, half)
MULTIPLY(mma_bf16, nv_bfloat16)
MULTIPLY(mma_e4m3, __nv_fp8_e4m3)
MULTIPLY(mma_e5m2, __nv_fp8_e5m2)
