// Random drops by the rank of a magnitude in its row (DELLA), of rows of any length.
//
// Thresholds lie close together, so that most words decide whatever the rank. Of the others most are decided by the ranks
// that a bin of similar magnitudes takes. What is left waits in a queue until that is full, or the row ends. Then the queue
// is sorted, and of each bin that has some in it the elements are counted that come before them.
//
// Compiled by NVRTC for one pair of dtypes.
#include "task_vector.cuh"

constexpr u32 TILE = THREADS * GROUP;
constexpr u32 QUEUE = TILE;                      // elements that wait, at most
constexpr u32 EACH = QUEUE / THREADS;
constexpr u32 OCTAVES = 16;                      // below the largest magnitude of a row; what is smaller has the first bin
constexpr u32 BITS = sizeof(Key) == 8 ? 6 : 7;   // of a magnitude's fraction, which tell bins of an octave apart
constexpr u32 SHIFT = 23 - BITS;                 // of a magnitude in float32, which leaves what tells bins apart
constexpr u32 BINS = OCTAVES << BITS;
constexpr u32 PIECE = BINS / THREADS;            // neighbouring bins of a thread
constexpr u32 ROUNDS = 10;                       // of Philox
constexpr u32 MOST = 0xffff;                     // of 16 bits

struct Words {
  u32 at[4];

  __device__ u32 operator[](u32 i) const {
    u32 even = i & 2 ? at[2] : at[0], odd = i & 2 ? at[3] : at[1];
    return i & 1 ? odd : even;
  }
};

// Philox-4x32 (Salmon et al. 2011): the words of elements 4 counter … 4 counter + 3.
__device__ Words philox(u64 counter, u64 key) {
  u32 a = (u32)counter, b = (u32)(counter >> 32), c = 0, d = 0, first = (u32)key, second = (u32)(key >> 32);
#pragma unroll
  for (u32 round = 0; round < ROUNDS; ++round) {
    u64 x = (u64)a * 0xD2511F53u, y = (u64)c * 0xCD9E8D57u;
    a = (u32)(y >> 32) ^ b ^ first, b = (u32)y, c = (u32)(x >> 32) ^ d ^ second, d = (u32)x;
    first += 0x9E3779B9u, second += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// A tensor, of which a block works on elements begin … end, a row.
struct Row {
  const Base* base;
  const Model* model;
  i64 begin, end;

  __device__ Working at(i64 i) const { return task_vector(base[i], model[i]); }

  // Calls use(τ, i) of the row's elements.
  template <typename Use> __device__ void each_element(Use use) const {
    each(base, model, begin, end, threadIdx.x, THREADS, use);
  }
};

struct Drop {
  const i64* thresholds;
  i64 least, most;  // of them
  bool ordered;     // whether they only rise or only fall
  u64 key;
  i64 start, stop;  // the elements that masks are wanted of
  u8* masks;

  __device__ u8* byte(i64 i) const { return masks + (i - start) / 8; }
};

// The elements of a row with similar magnitudes: the rank of the first, and two limits. While words are looked at they are the
// upper halves of the thresholds of all its ranks: words whose upper half is more than the higher one are kept, less than the
// lower one dropped. While those that wait are looked at they are where the bin's begin and end in the queue.
struct Bin {
  u32 rank;
  u16 low, high;
};

__device__ u32 lowest_bit(u32 bits) { return __popc((bits & -bits) - 1); }

__device__ u32 bin_of(Working tau, u32 largest) {
  int bin = (int)(key_of((float)tau) >> SHIFT) - (int)(largest >> SHIFT) + (int)BINS - 1;
  return bin > 0 ? bin : 0;
}

struct Shared {
  Bin bins[BINS + THREADS];          // a thread's are followed by one of no use, so that theirs lie in different banks
  Key keys[QUEUE];
  u16 places[QUEUE];                 // in the row
  u32 counts[QUEUE];
  u32 sums[THREADS];
  u32 waiting, wanted;               // how many are in the queue, and how many are or will be
  // Magnitude of the row, in float32. Not beside `waiting`, with which the compiler would load it at once at a row's end,
  // where the first thread sets it for the next row.
  u32 largest;

  __device__ Bin& bin(u32 i) { return bins[i + i / PIECE]; }
  __device__ u32 bin_in_queue(u32 i) const { return bin_of(magnitude_of(keys[i]), largest); }
  __device__ bool before(u32 a, u32 b) const { return before(a, keys[b], places[b]); }
  __device__ bool before(u32 a, Key key, u32 place) const {
    return keys[a] < key || (keys[a] == key && places[a] < place);
  }
};

// Which of the GROUP elements from i on are among begin … end, a bit for each.
__device__ u32 bits_within(i64 i, i64 begin, i64 end) {
  u32 bits = i < begin ? 0xff << (begin - i) : 0xff;
  return bits & (end - i < GROUP ? (1u << (end - i)) - 1 : 0xff);
}

// The limits that words are held to, of a row of so many columns.
__device__ void set_limits(Shared& s, const Drop& drop, u32 columns) {
  for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
    Bin& bin = s.bin(i);
    u32 next = i + 1 < BINS ? s.bin(i + 1).rank : columns;
    bin.low = 0, bin.high = MOST;
    if (drop.ordered && bin.rank < next) {
      i64 one = drop.thresholds[bin.rank] >> 16, other = drop.thresholds[next - 1] >> 16;
      i64 low = one < other ? one : other, high = one < other ? other : one;
      bin.low = (u16)(low < MOST ? low : MOST), bin.high = (u16)(high < MOST ? high : MOST);
    }
  }
  __syncthreads();
}

__device__ void fill_bins(Shared& s, const Row& row, const Drop& drop) {
  for (u32 i = threadIdx.x; i < BINS; i += THREADS) s.bin(i).rank = 0;
  if (threadIdx.x == 0) s.largest = 0;
  __syncthreads();
  u32 most = 0;
  row.each_element([&](Working tau, i64) {
    u32 key = key_of((float)tau);
    most = most < key ? key : most;
  });
  atomicMax(&s.largest, most);
  __syncthreads();
  u32 largest = s.largest;
  row.each_element([&](Working tau, i64) { atomicAdd(&s.bin(bin_of(tau, largest)).rank, 1u); });
  __syncthreads();
  u32 own = 0, first = threadIdx.x * PIECE;
  for (u32 i = 0; i < PIECE; ++i) own += s.bin(first + i).rank;
  u32 rank = sum_up_to(s.sums, own) - own;
  for (u32 i = 0; i < PIECE; ++i) {
    u32 count = s.bin(first + i).rank;
    s.bin(first + i).rank = rank;
    rank += count;
  }
  __syncthreads();
  set_limits(s, drop, (u32)(row.end - row.begin));
}

// By magnitude, of equal ones by place. What is beyond `count` comes last.
__device__ void sort_queue(Shared& s, u32 count) {
  u32 size = 2;
  while (size < count) size *= 2;
  for (u32 i = count + threadIdx.x; i < size; i += THREADS) s.keys[i] = ~(Key)0, s.places[i] = MOST;
  __syncthreads();
  for (u32 width = 2; width <= size; width *= 2) {
    for (u32 step = width / 2; step; step /= 2) {
      for (u32 i = threadIdx.x; i < size / 2; i += THREADS) {
        u32 low = 2 * i - (i & (step - 1)), high = low + step;
        if (s.before(high, low) == !(low & width)) {
          Key key = s.keys[low];
          u16 place = s.places[low];
          s.keys[low] = s.keys[high], s.places[low] = s.places[high];
          s.keys[high] = key, s.places[high] = place;
        }
      }
      __syncthreads();
    }
  }
}

// Decides for all that wait.
__device__ void settle(Shared& s, const Row& row, const Drop& drop) {
  u32 count = s.waiting, largest = s.largest;
  sort_queue(s, count);
  for (u32 i = threadIdx.x; i < BINS; i += THREADS) s.bin(i).low = s.bin(i).high = 0;
  for (u32 i = threadIdx.x; i < count; i += THREADS) s.counts[i] = 0;
  __syncthreads();
  for (u32 i = threadIdx.x; i < count; i += THREADS) {
    u32 bin = s.bin_in_queue(i);
    if (i == 0 || s.bin_in_queue(i - 1) != bin) s.bin(bin).low = (u16)i;
    if (i + 1 == count || s.bin_in_queue(i + 1) != bin) s.bin(bin).high = (u16)(i + 1);
  }
  __syncthreads();
  bool whole = aligned(row.base, row.model);
  for (i64 i = row.begin / GROUP * GROUP + threadIdx.x * GROUP; i < row.end; i += TILE) {
    Working taus[GROUP];
    load_group(row.base, row.model, whole, i, row.begin, row.end, taus);
    u32 near = 0;
#pragma unroll
    for (u32 j = 0; j < GROUP; ++j) {
      Bin bin = s.bin(bin_of(taus[j], largest));
      near |= (u32)(bin.low < bin.high) << j;
    }
    for (near &= bits_within(i, row.begin, row.end); near; near &= near - 1) {  // few, so that threads have one at a time
      i64 own = i + lowest_bit(near);
      Working tau = row.at(own);
      Bin bin = s.bin(bin_of(tau, largest));
      u32 low = bin.low, high = bin.high;  // where the first in the queue is that comes after it
      while (low < high) {
        u32 middle = (low + high) / 2;
        if (s.before(middle, key_of(tau), (u32)(own - row.begin) + 1)) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (low < bin.high) atomicAdd(s.counts + low, 1u);
    }
  }
  __syncthreads();
  u32 own = 0, first = threadIdx.x * EACH, last = first + EACH < count ? first + EACH : count;
  for (u32 i = first; i < last; ++i) own += s.counts[i];
  u32 before = sum_up_to(s.sums, own) - own;
  for (u32 i = first; i < last; ++i) {
    before += s.counts[i];
    s.counts[i] = before;
  }
  __syncthreads();
  u32 kept = 0;
  for (u32 i = first; i < last; ++i) {
    Bin bin = s.bin(s.bin_in_queue(i));
    u32 rank = bin.rank + s.counts[i] - (bin.low ? s.counts[bin.low - 1] : 0);
    i64 place = row.begin + s.places[i];
    u32 word = philox(place / 4, drop.key)[place % 4];
    kept |= (u32)(word >= drop.thresholds[rank]) << (i - first);
  }
  for (u32 bit = 0; bit < 8; ++bit) {  // one after the other, so that no two threads change a byte
    for (u32 left = kept; left; left &= left - 1) {
      i64 place = row.begin + s.places[first + lowest_bit(left)];
      if (place % 8 == bit) *drop.byte(place) |= 1 << bit;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) s.wanted -= count, s.waiting = 0;
  set_limits(s, drop, (u32)(row.end - row.begin));
}

__device__ void drop_row(Shared& s, const Row& row, const Drop& drop) {
  bool always = drop.most == 0, never = drop.least >> 32, various = drop.least < drop.most;
  // Words that ranks decide for go from the one to the other, if any do.
  u32 least = (u32)drop.least, last = (u32)(drop.most - 1);
  i64 stop = row.end < drop.stop ? row.end : drop.stop;
  if (various) fill_bins(s, row, drop);
  u32 largest = s.largest;
  for (i64 tile = row.begin / GROUP * GROUP; tile < row.end; tile += TILE) {
    i64 i = tile + threadIdx.x * GROUP;
    u32 kept = 0, open = 0;
    if (i >= drop.start && i < stop) {
      Words words[2] = {philox(i / 4, drop.key), philox(i / 4 + 1, drop.key)};
#pragma unroll
      for (u32 j = 0; j < GROUP; ++j) {
        u32 word = words[j / 4].at[j % 4];
        kept |= (u32)(word > last) << j;
        open |= (u32)(word >= least && word <= last) << j;
      }
      u32 inside = bits_within(i, row.begin, stop);
      kept = never ? 0 : (always ? inside : kept & inside), open = various ? open & inside : 0;
      for (u32 left = open; left; left &= left - 1) {
        u32 j = lowest_bit(left), bit = left & -left, word = j & 4 ? words[1][j] : words[0][j];
        Bin bin = s.bin(bin_of(row.at(i + j), largest));
        if (word >> 16 > bin.high) kept |= bit;
        if (word >> 16 < bin.low || word >> 16 > bin.high) open &= ~bit;
      }
      u8* byte = drop.byte(i);
      *byte = (u8)(i < row.begin ? *byte | kept : kept);  // the row before is this block's, and has written its bits
    }
    u32 own = __popc(open);
    if (own) atomicAdd(&s.wanted, own);
    __syncthreads();
    bool full = s.wanted > QUEUE;
    __syncthreads();
    if (full) settle(s, row, drop);
    if (own) {
      u32 at = atomicAdd(&s.waiting, own);
      for (; open; open &= open - 1, ++at) {
        i64 own = i + lowest_bit(open);
        s.keys[at] = key_of(row.at(own)), s.places[at] = (u16)(own - row.begin);
      }
    }
  }
  __syncthreads();
  if (s.waiting) settle(s, row, drop);
}

// Masks of elements start … stop: bit i is set where the word of element i is not below the threshold of its rank in its row.
// limits: the least and the largest threshold, and whether they only rise or only fall. A block of threads has `together`
// rows to itself, which end on a byte; the first block's are those from row first · together on.
extern "C" __global__ void __launch_bounds__(THREADS)
rank_drop(const Base* base, const Model* model, i64 n, i64 columns, i64 together, i64 first, const i64* thresholds,
          const i64* limits, u64 key, i64 start, i64 stop, u8* masks) {
  __shared__ Shared s;
  if (threadIdx.x == 0) s.waiting = s.wanted = 0;
  __syncthreads();
  Drop drop{thresholds, limits[0], limits[1], limits[2] != 0, key, start, stop, masks};
  i64 begin = (first + blockIdx.x) * together * columns, rows = begin + together * columns, end = rows < n ? rows : n;
  for (; begin < end; begin += columns) drop_row(s, Row{base, model, begin, begin + columns}, drop);
}
