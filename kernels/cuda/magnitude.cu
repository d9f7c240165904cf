// Selection by |τ| = |θ − θ_pre|: histograms of magnitudes, and the elements above a cut, counted and collected.
//
// Compiled by NVRTC for one pair of dtypes: BASE and MODEL are 0 bfloat16, 1 float16, 2 float32, 3 float64. A magnitude's
// key is its bits as an integer, of every NaN those of the quiet one (kernels/README.md). Blocks have THREADS threads.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 THREADS = 256;
constexpr u32 GROUP = 8;        // neighbouring elements that a thread loads together, 16 bytes at a time
constexpr u32 BINS = 8192;      // of shared memory; fewer are kept in several copies, which warps take turns with
constexpr i64 BLOCK = 65536;    // elements that offsets are counted in

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

template <typename T> struct alignas(16) Group { T at[GROUP]; };

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

__device__ u32 key_of(float tau) {
  u32 bits = __float_as_uint(tau) & 0x7fffffffu;
  return bits > 0x7f800000u ? 0x7fc00000u : bits;
}

__device__ u64 key_of(double tau) {
  u64 bits = (u64)__double_as_longlong(tau) & 0x7fffffffffffffffull;
  return bits > 0x7ff0000000000000ull ? 0x7ff8000000000000ull : bits;
}

__device__ bool aligned(const Base* base, const Model* model) { return (((u64)base | (u64)model) & 15) == 0; }

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
      for (u32 j = 0; j < GROUP; ++j) use(task_vector(b.at[j], m.at[j]), i + j);
    }
  }
  for (i64 i = rest + thread; i < stop; i += threads) use(task_vector(base[i], model[i]), i);
}

template <typename Wide>
__device__ void count_bins(const Base* base, const Model* model, i64 n, int shift, int bits, i64 prefix, u64* counts) {
  __shared__ u32 bins[BINS];
  for (u32 i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
  __syncthreads();
  u32 last = (1u << bits) - 1, copies = BINS >> bits;
  u32* own = bins + ((threadIdx.x / 32 & (copies - 1)) << bits);
  i64 thread = (i64)blockIdx.x * THREADS + threadIdx.x;
  each(base, model, 0, n, thread, (i64)gridDim.x * THREADS, [&](Working tau, i64) {
    auto key = key_of((Wide)tau);
    if (prefix < 0 || (i64)(key >> (shift + bits)) == prefix) atomicAdd(own + ((u32)(key >> shift) & last), 1u);
  });
  __syncthreads();
  for (u32 i = threadIdx.x; i <= last; i += THREADS) {
    u64 total = 0;
    for (u32 copy = 0; copy < copies; ++copy) total += bins[(copy << bits) + i];
    if (total) atomicAdd(counts + i, total);
  }
}

// counts[bin] += how many keys have these bits from `shift` on, and `prefix` above them where it is not negative.
extern "C" __global__ void __launch_bounds__(THREADS)
histogram(const Base* base, const Model* model, i64 n, int shift, int bits, i64 prefix, u64* counts) {
  count_bins<Working>(base, model, n, shift, bits, prefix, counts);
}

// The same of keys in float64.
extern "C" __global__ void __launch_bounds__(THREADS)
histogram_wide(const Base* base, const Model* model, i64 n, int shift, int bits, i64 prefix, u64* counts) {
  count_bins<double>(base, model, n, shift, bits, prefix, counts);
}

// Which elements are selected: keys from `cut` to `top`, without `cut` itself; of those equal to it the ones before `index`.
struct Selection {
  i64 cut, top, index;
  __device__ bool has(Working tau, i64 i) const {
    i64 key = (i64)key_of(tau);
    return (key > cut && key <= top) || (key == cut && i < index);
  }
};

// counts[b]: the selected of block b, which a block of threads has to itself.
extern "C" __global__ void __launch_bounds__(THREADS)
count_selected(const Base* base, const Model* model, i64 n, i64 cut, i64 top, i64 index, u32* counts) {
  __shared__ u32 total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  Selection selection{cut, top, index};
  i64 first = blockIdx.x * BLOCK, stop = first + BLOCK < n ? first + BLOCK : n;
  u32 own = 0;
  each(base, model, first, stop, threadIdx.x, THREADS, [&](Working tau, i64 i) { own += selection.has(tau, i); });
  atomicAdd(&total, own);
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// Offsets in block b of its selected elements, and their τ, in order, from place starts[b] on and while there is room.
extern "C" __global__ void __launch_bounds__(THREADS)
collect_selected(const Base* base, const Model* model, i64 n, i64 cut, i64 top, i64 index, const i64* starts, i64 room,
                 u16* offsets, Working* values) {
  __shared__ u32 sums[THREADS];
  Selection selection{cut, top, index};
  i64 first = blockIdx.x * BLOCK, stop = first + BLOCK < n ? first + BLOCK : n;
  i64 start = starts[blockIdx.x];
  bool whole = aligned(base, model);
  for (i64 tile = first; tile < stop; tile += THREADS * GROUP) {
    i64 i = tile + threadIdx.x * GROUP;
    Working taus[GROUP];
    u32 chosen = 0;
    if (whole && i + GROUP <= stop) {
      Group<Base> b = *(const Group<Base>*)(base + i);
      Group<Model> m = *(const Group<Model>*)(model + i);
#pragma unroll
      for (u32 j = 0; j < GROUP; ++j) taus[j] = task_vector(b.at[j], m.at[j]);
    } else {
#pragma unroll
      for (u32 j = 0; j < GROUP; ++j) taus[j] = i + j < stop ? task_vector(base[i + j], model[i + j]) : 0;
    }
#pragma unroll
    for (u32 j = 0; j < GROUP; ++j) chosen |= (u32)(i + j < stop && selection.has(taus[j], i + j)) << j;
    u32 own = __popc(chosen);
    sums[threadIdx.x] = own;
    __syncthreads();
    for (u32 step = 1; step < THREADS; step *= 2) {  // sums[t] becomes Σ of own of the threads up to t
      u32 before = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
      __syncthreads();
      sums[threadIdx.x] += before;
      __syncthreads();
    }
    i64 to = start + sums[threadIdx.x] - own;
#pragma unroll
    for (u32 j = 0; j < GROUP; ++j) {
      if (chosen >> j & 1) {
        if (to < room) {
          offsets[to] = (u16)(i + j - first);
          values[to] = taus[j];
        }
        ++to;
      }
    }
    start += sums[THREADS - 1];
    __syncthreads();
  }
}
