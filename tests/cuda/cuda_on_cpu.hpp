// Runs CUDA C++ on the CPU, so that a kernel's own text can be tested without a GPU.
//
// A block's threads are coroutines, which take turns at __syncthreads(); blocks run one after the other. ORDER says in
// which order threads take their turns, so that a result which depends on it differs: 0 upward, 1 downward, 2 mixed.
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Index { unsigned x = 0; };
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {
constexpr size_t STACK = 64 << 10;
static jmp_buf scheduler;
static std::vector<ucontext_t> beginnings;
struct Turn { jmp_buf at; bool begun, done; };
static std::vector<Turn> threads;
static unsigned current;
static void (*body)();

static void run() {
  body();
  threads[current].done = true;
  _longjmp(scheduler, 1);
}

inline unsigned turn(unsigned i, unsigned n, unsigned round) {
#if ORDER == 1
  return n - 1 - i;
#elif ORDER == 2
  return (i * 5 + round * 3) % n;  // n is a power of two
#else
  return i;
#endif
}

// Let the current thread compute until its next barrier, or its end. Jumps, since swapcontext calls the kernel.
inline void resume() {
  if (_setjmp(scheduler)) return;
  Turn& own = threads[current];
  if (own.begun) _longjmp(own.at, 1);
  own.begun = true;
  setcontext(&beginnings[current]);
}

inline void run_block(std::vector<char>& stacks) {
  unsigned n = blockDim.x, left = n;
  beginnings.assign(n, {});
  threads.assign(n, {});
  for (unsigned t = 0; t < n; ++t) {
    getcontext(&beginnings[t]);
    beginnings[t].uc_stack.ss_sp = &stacks[t * STACK];
    beginnings[t].uc_stack.ss_size = STACK;
    makecontext(&beginnings[t], run, 0);
  }
  for (volatile unsigned round = 0; left; round = round + 1) {
    for (volatile unsigned i = 0; i < n; i = i + 1) {
      current = turn(i, n, round);
      if (threads[current].done) continue;
      threadIdx.x = current;
      resume();
      left -= threads[current].done;
    }
  }
}

static void** arguments;

template <auto KERNEL, typename... A, size_t... I> void call(void (*)(A...), std::index_sequence<I...>) {
  KERNEL(*(A*)arguments[I]...);
}
template <auto KERNEL, typename... A> void unpack(void (*kernel)(A...)) {
  call<KERNEL>(kernel, std::index_sequence_for<A...>{});
}

// Of each argument of a kernel: its bytes, and those of what it points to, or 0. Returns how many there are.
template <typename T> constexpr unsigned pointed = 0;
template <typename T> constexpr unsigned pointed<T*> = sizeof(T);
template <typename... A> unsigned describe(void (*)(A...), unsigned* found) {
  ((*found++ = sizeof(A), *found++ = pointed<A>), ...);
  return sizeof...(A);
}

template <auto KERNEL> void launch(unsigned blocks, unsigned block_threads, void** given) {
  arguments = given;
  body = [] { unpack<KERNEL>(KERNEL); };
  std::vector<char> stacks(block_threads * STACK);
  gridDim.x = blocks, blockDim.x = block_threads;
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    run_block(stacks);
  }
}
}  // namespace on_cpu

inline void __syncthreads() {
  if (!_setjmp(on_cpu::threads[on_cpu::current].at)) _longjmp(on_cpu::scheduler, 1);
}
template <typename T> T atomicAdd(T* to, T more) { T before = *to; *to += more; return before; }
template <typename T> T atomicMax(T* to, T other) { T before = *to; *to = before < other ? other : before; return before; }
inline unsigned __popc(unsigned x) { return __builtin_popcount(x); }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
inline long long __double_as_longlong(double x) { long long bits; memcpy(&bits, &x, 8); return bits; }
inline double __longlong_as_double(long long bits) { double x; memcpy(&x, &bits, 8); return x; }
// Of NaN a GPU gives the one whose bits are all set but the sign.
inline float __fsub_rn(float x, float y) { float z = x - y; return z == z ? z : __uint_as_float(0x7fffffff); }
