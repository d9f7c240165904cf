// Task vectors τ = θ − θ_pre and keys of their magnitudes, for one pair of dtypes: BASE and MODEL are 0 bfloat16, 1 float16,
// 2 float32, 3 float64. A magnitude's key is its bits as an integer, of every NaN those of the quiet one (kernels/README.md).
// Blocks have THREADS threads.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 THREADS = 256;
constexpr u32 GROUP = 8;  // neighbouring elements that a thread loads together, 16 bytes at a time
constexpr u32 INFINITE = 0x7f800000, LARGEST = 0x7fc00000;  // keys in 32 bits; the latter NaN have

template <int DTYPE> struct Stored { typedef u16 type; };
template <> struct Stored<2> { typedef float type; };
template <> struct Stored<3> { typedef double type; };
typedef Stored<BASE>::type Base;
typedef Stored<MODEL>::type Model;

#if BASE == 3 || MODEL == 3
typedef double Working;
typedef u64 Key;
#else
typedef float Working;
typedef u32 Key;
#endif

template <typename T> struct alignas(16) Group {
  T at[GROUP];
  __device__ T operator[](u32 j) const { return at[j]; }
};

// Two in a register, of which one instruction makes either a bfloat16's float.
template <> struct alignas(16) Group<u16> {
  u32 pairs[GROUP / 2];
  __device__ u16 operator[](u32 j) const { return (u16)(pairs[j / 2] >> 16 * (j % 2)); }
};

template <int DTYPE, typename T> __device__ Working widen(T x) {
  if constexpr (DTYPE == 0) return __uint_as_float((u32)x << 16);
  if constexpr (DTYPE == 1) {
    u32 bits = (u32)(x & 0x7fff) << 13;
    float size = (x & 0x7c00) == 0x7c00 ? __uint_as_float(bits | 0x7f800000u) : __uint_as_float(bits) * 0x1p112f;
    return __uint_as_float(__float_as_uint(size) | (u32)(x & 0x8000) << 16);
  }
  return x;
}

__device__ Working task_vector(Base base, Model model) { return widen<MODEL>(model) - widen<BASE>(base); }

// NaN that arithmetic gives are quiet, and have no smaller bits than the one whose bits are the key of all.
__device__ u32 key_of(float tau) {
  u32 bits = __float_as_uint(tau) & 0x7fffffffu;
  return bits < LARGEST ? bits : LARGEST;
}

__device__ u64 key_of(double tau) {
  u64 bits = (u64)__double_as_longlong(tau) & 0x7fffffffffffffffull;
  return bits > 0x7ff0000000000000ull ? 0x7ff8000000000000ull : bits;
}

__device__ float magnitude_of(u32 key) { return __uint_as_float(key); }
__device__ double magnitude_of(u64 key) { return __longlong_as_double((i64)key); }

__device__ bool aligned(const Base* base, const Model* model) { return (((u64)base | (u64)model) & 15) == 0; }

// τ of elements i … i + GROUP, of those from `begin` to `end`; 0 for the others. whole: whether the tensors are aligned, and
// i a multiple of GROUP.
__device__ void load_group(const Base* base, const Model* model, bool whole, i64 i, i64 begin, i64 end, Working* taus) {
  if (whole && i >= begin && i + GROUP <= end) {
    Group<Base> b = *(const Group<Base>*)(base + i);
    Group<Model> m = *(const Group<Model>*)(model + i);
#pragma unroll
    for (u32 j = 0; j < GROUP; ++j) taus[j] = task_vector(b[j], m[j]);
  } else {
#pragma unroll
    for (u32 j = 0; j < GROUP; ++j) taus[j] = i + j >= begin && i + j < end ? task_vector(base[i + j], model[i + j]) : 0;
  }
}

// Calls use(τ, i) of the elements first … stop, shared by `threads` of which this is number `thread`.
template <typename Use>
__device__ void each(const Base* base, const Model* model, i64 first, i64 stop, i64 thread, i64 threads, Use use) {
  i64 rest = first;
  if (aligned(base + first, model + first)) {
    rest += (stop - first) / GROUP * GROUP;
    for (i64 i = first + thread * GROUP; i < rest; i += threads * GROUP) {
      Group<Base> b = *(const Group<Base>*)(base + i);
      Group<Model> m = *(const Group<Model>*)(model + i);
#pragma unroll
      for (u32 j = 0; j < GROUP; ++j) use(task_vector(b[j], m[j]), i + j);
    }
  }
  for (i64 i = rest + thread; i < stop; i += threads) use(task_vector(base[i], model[i]), i);
}

// The sum of `own` over a block's threads up to this one; sums[t] is that of thread t.
__device__ u32 sum_up_to(u32* sums, u32 own) {
  sums[threadIdx.x] = own;
  __syncthreads();
  for (u32 step = 1; step < THREADS; step *= 2) {
    u32 before = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
    __syncthreads();
  }
  return sums[threadIdx.x];
}
