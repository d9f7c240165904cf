// Selection by |τ| = |θ − θ_pre|: histograms of magnitudes, the elements above a cut or between two, counted and collected.
//
// Compiled by NVRTC for one pair of dtypes.
#include "task_vector.cuh"

#ifndef SLOTS
#define SLOTS 1  // brackets that collect_between looks into in one reading
#endif

constexpr u32 BINS = 8192;      // of shared memory; fewer are kept in several copies, which warps take turns with
constexpr i64 BLOCK = 65536;    // elements that offsets are counted in
constexpr i64 SPAN = 16384;     // elements that a block of threads looks for brackets in
constexpr u32 QUEUE = 4096;     // codes of shared memory, of all brackets
constexpr u32 DIGIT = 8;        // bits of a code that tell THREADS bins apart
constexpr u32 ROUNDS = 64 / DIGIT;
constexpr u32 AT_ONCE = 4;      // codes that a thread has on their way together
constexpr u64 LAST = (u64)LARGEST << 32 | 0xffffffffu;  // of codes

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
    load_group(base, model, whole, i, first, stop, taus);
#pragma unroll
    for (u32 j = 0; j < GROUP; ++j) chosen |= (u32)(i + j < stop && selection.has(taus[j], i + j)) << j;
    u32 own = __popc(chosen);
    i64 to = start + sum_up_to(sums, own) - own;
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

// An element's code has its place in the order of magnitudes: the largest magnitude first, of equal ones the lowest index.
// It is one of a key in 32 bits and of an index below 2^32.
__device__ u64 code_of(u32 key, i64 i) { return (u64)(LARGEST - key) << 32 | (u32)i; }

// How far |τ| is past `least`: the bits of the difference, whose sign is set where |τ| is less. It is exact or rounded, so
// of two magnitudes the larger is never less far. NaN, which no bits exceed, where either is NaN, or both are infinite.
__device__ u32 past(float tau, float least) { return __float_as_uint(__fsub_rn(fabsf(tau), least)); }

// Magnitudes which among the elements begin … stop may be near the bracket from one code to another: those less than `span`
// past `least`. Of the bracket's highest key some may be before it, and of its lowest some after it, or all, by index.
struct Near {
  float least;
  u32 span;
  __device__ Near(u64 first, u64 last, i64 begin, i64 stop) {
    i64 low = LARGEST - (i64)(last >> 32) + (begin > (i64)(u32)last);
    i64 high = LARGEST - (i64)(first >> 32) - (stop <= (i64)(u32)first);
    least = __uint_as_float((u32)low);
    if (low >= LARGEST || high >= INFINITE) {
      span = 0x80000000u;
    } else {
      span = low > high ? 0 : past(__uint_as_float((u32)high), least) + 1;
    }
  }
};

struct Models { const Model* at[SLOTS]; };

// For each model codes of the same 2^bits elements, after the least code there can be and before the largest. One element in
// every n / 2^bits, wherever in them: a fixed distance could fall into step with the rows. Of elements spread like that a
// sample errs no more than one drawn without regard to places. They depend on n alone.
extern "C" __global__ void __launch_bounds__(THREADS)
sample(const Base* base, Models models, i64 n, int bits, u64* codes) {
  u64 at = (u64)blockIdx.x * THREADS + threadIdx.x, size = (1ull << bits) + 2;
  if (at >= size) return;
  u64 mixed = at * 0x9e3779b97f4a7c15ull;
  mixed = (mixed ^ mixed >> 31) * 0xbf58476d1ce4e5b9ull;
  u64 start = (at - 1) * n >> bits, width = (at * n >> bits) - start, i = start + (width * (mixed >> 32) >> 32);
  bool end = at == 0 || at == size - 1;
  u64 found[SLOTS];
#pragma unroll
  for (u32 s = 0; s < SLOTS; ++s) {
    found[s] = end ? (at ? LAST : 0) : code_of(key_of((float)task_vector(base[i], models.at[s][i])), i);
  }
#pragma unroll
  for (u32 s = 0; s < SLOTS; ++s) codes[s * size + at] = found[s];
}

// For each bracket s, codes first … last of models.at[s]: found[s][0] += elements before it, found[s][1] += elements in it,
// and codes[s] is where the codes of those go, in any order, while there is room.
//
// What every element costs counts, most of all in integer arithmetic, which has half the throughput. So only magnitudes that
// in this block may be near a bracket have codes; of the others the sign of a difference tells whether they are not before it.
// Elements in a bracket wait in shared memory, so that a block adds once to each total in device memory.
extern "C" __global__ void __launch_bounds__(THREADS)
collect_between(const Base* base, Models models, i64 n, const u64* brackets, i64 room, u64* found, u64* codes) {
  constexpr u32 QUEUED = QUEUE / SLOTS, STEPS = SLOTS == 1 ? 2 : 1;  // whichever: loads in flight together
  constexpr i64 TILE = THREADS * GROUP * STEPS;
  __shared__ u64 first[SLOTS], last[SLOTS], starts[SLOTS], queue[SLOTS][QUEUED];
  __shared__ u32 spans[SLOTS], sizes[SLOTS], others[SLOTS];
  __shared__ float leasts[SLOTS];
  i64 begin = blockIdx.x * SPAN, stop = begin + SPAN < n ? begin + SPAN : n;
  if (threadIdx.x < SLOTS) {
    u32 s = threadIdx.x;
    first[s] = brackets[2 * s], last[s] = brackets[2 * s + 1], sizes[s] = others[s] = 0;
    Near near(first[s], last[s], begin, stop);
    leasts[s] = near.least, spans[s] = near.span;
  }
  __syncthreads();
  float least[SLOTS];
  u32 span[SLOTS], own[SLOTS];  // the latter: elements that are not before the bracket
  bool whole = true;
#pragma unroll
  for (u32 s = 0; s < SLOTS; ++s) {
    least[s] = leasts[s], span[s] = spans[s], own[s] = 0;
    whole = whole && aligned(base, models.at[s]);
  }
  auto sift = [&](u32 s, const float* taus, u32 count, i64 i) {  // not generic: NVRTC before 13.5 would refuse it
    u32 nearest = 0xffffffffu, near = 0;
#pragma unroll
    for (u32 j = 0; j < count; ++j) {
      u32 far = past(taus[j], least[s]);
      own[s] += far >> 31;
      nearest = far < nearest ? far : nearest;
    }
    if (nearest >= span[s]) return;
#pragma unroll
    for (u32 j = 0; j < count; ++j) near |= (u32)(past(taus[j], least[s]) < span[s]) << j;
    for (; near; near &= near - 1) {
      u32 lowest = near & -near;
      float tau = taus[0];
#pragma unroll
      for (u32 j = 1; j < count; ++j) tau = lowest >> j & 1 ? taus[j] : tau;
      u64 code = code_of(key_of(tau), i + __popc(lowest - 1));
      if (code < first[s]) continue;
      ++own[s];
      if (code > last[s]) continue;
      if (u32 at = atomicAdd(sizes + s, 1u); at < QUEUED) {
        queue[s][at] = code;
      } else if (u64 to = atomicAdd(found + 2 * s + 1, (u64)1); to < room) {
        codes[s * room + to] = code;
      }
    }
  };
  i64 rest = begin;
  for (; whole && rest + TILE <= stop; rest += TILE) {
    Group<Base> b[STEPS];
    Group<Model> m[STEPS][SLOTS];
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
      i64 i = rest + (step * THREADS + threadIdx.x) * GROUP;
      b[step] = *(const Group<Base>*)(base + i);
#pragma unroll
      for (u32 s = 0; s < SLOTS; ++s) m[step][s] = *(const Group<Model>*)(models.at[s] + i);
    }
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
#pragma unroll
      for (u32 s = 0; s < SLOTS; ++s) {
        float taus[GROUP];
#pragma unroll
        for (u32 j = 0; j < GROUP; ++j) taus[j] = task_vector(b[step][j], m[step][s][j]);
        sift(s, taus, GROUP, rest + (step * THREADS + threadIdx.x) * GROUP);
      }
    }
  }
  for (i64 i = rest + threadIdx.x; i < stop; i += THREADS) {
#pragma unroll
    for (u32 s = 0; s < SLOTS; ++s) {
      float taus[] = {(float)task_vector(base[i], models.at[s][i])};
      sift(s, taus, 1, i);
    }
  }
#pragma unroll
  for (u32 s = 0; s < SLOTS; ++s) atomicAdd(others + s, own[s]);
  __syncthreads();
  if (threadIdx.x < SLOTS) {
    u32 s = threadIdx.x;
    sizes[s] = sizes[s] < QUEUED ? sizes[s] : QUEUED;
    atomicAdd(found + 2 * s, (u64)(stop - begin - others[s]));
    starts[s] = atomicAdd(found + 2 * s + 1, (u64)sizes[s]);
  }
  __syncthreads();
  for (u32 s = 0; s < SLOTS; ++s) {
    for (u32 at = threadIdx.x; at < sizes[s] && starts[s] + at < room; at += THREADS) {
      codes[s * room + starts[s] + at] = queue[s][at];
    }
  }
}

// One round of searches for codes of given places in ascending order, the smallest's being 0: `targets` searches in each row
// of `room` codes, of which sizes[row] count. Before a round a search knows so many digits, and the place that is left among
// the codes which begin with these: searches[…][round] = (digits, place). `parts` blocks work on each. They learn the digit
// of the round before from its counts, each for itself, and count the next one's: counts[…][round]. The last round only
// learns. A search for a place that there is not finds anything. A row's codes lie between two, its limits: where they share
// a round's digit and those before it, nothing is read.
extern "C" __global__ void __launch_bounds__(THREADS)
narrow(const u64* codes, i64 room, const i64* sizes, const u64* limits, int targets, int parts, int round, i64* searches,
       u32* counts) {
  __shared__ u32 sums[THREADS], bins[THREADS];
  __shared__ u64 begins;
  i64 target = blockIdx.x / parts, part = blockIdx.x % parts, row = target / targets;
  i64* search = searches + (target * (ROUNDS + 1) + round) * 2;
  u32* count = counts + (target * ROUNDS + round) * THREADS;
  bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) begins = 0;
  __syncthreads();
  if (round > 0) {
    u32 own = (count - THREADS)[threadIdx.x];
    i64 end = sum_up_to(sums, own), place = search[-1];
    if (end - own <= place && place < end) {
      begins = (u64)search[-2] << DIGIT | threadIdx.x;
      if (part == 0) search[0] = begins, search[1] = place - (end - own);
    }
    __syncthreads();
  }
  if (round == ROUNDS) return;
  u32 shift = 64 - DIGIT * (round + 1);
  i64 size = sizes[row] < room ? sizes[row] : room;
  u64 first = limits[2 * row] >> shift, last = limits[2 * row + 1] >> shift;
  if (first == last) {
    if (part == 0 && threadIdx.x == 0) count[first & (THREADS - 1)] = (u32)size;
    return;
  }
  i64 step = parts * THREADS;
  for (i64 i = part * THREADS + threadIdx.x; i < size; i += AT_ONCE * step) {
    u64 read[AT_ONCE];
#pragma unroll
    for (u32 j = 0; j < AT_ONCE; ++j) read[j] = i + j * step < size ? codes[row * room + i + j * step] >> shift : 0;
#pragma unroll
    for (u32 j = 0; j < AT_ONCE; ++j) {
      if (i + j * step < size && read[j] >> DIGIT == begins) atomicAdd(bins + (read[j] & (THREADS - 1)), 1u);
    }
  }
  __syncthreads();
  if (bins[threadIdx.x]) atomicAdd(count + threadIdx.x, bins[threadIdx.x]);
}
