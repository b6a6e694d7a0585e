#include "quantizer/rvq_beam.h"

#include <array>
#include <bit>
#include <limits>

#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
#include <immintrin.h>
#endif

#include "nacre/ops/rvq.h"

// The beam search of rvq_forward on the CPU; rvq_beam.cu is the same on CUDA. nacre/ops/rvq.h gives the arithmetic.
//
// Per stage, search() scores tiles of twelve hypotheses against blocks of sixteen codes, as vq_search.cpp searches, but
// with the hypothesis' energy added and a bound per hypothesis: only candidates that may still be kept leave the loop
// over codes. Candidates are compared as 64-bit keys, no two of which are equal, so the order in which they are found
// does not change the result.
namespace nacre::rvq_beam {
namespace {

using namespace vq_search;
constexpr float largest = std::numeric_limits<float>::max();
constexpr int64_t cached_floats = 1 << 16;  // a quarter of a small second-level cache
// Hypotheses of all rows of a call at most: the size of the arrays on the stack.
constexpr int64_t max_columns = max_rows * max_rvq_beam;

using Scores = uint32_t (*)(const float*, const float*, const float*, int64_t, const float*, const float*, float*,
                            uint32_t*);

// Scores of twelve hypotheses for a block of sixteen codes: the half distance as in vq_search.cpp, bit for bit, plus
// the half energy of the hypothesis. scores is [tile][lanes]; bit t of passed[r] is set if score t of hypothesis r is
// at most worst[r]. Returns nonzero if any bit is set.
#define NACRE_SCORES(name, target, width, lanes_of)                                                                  \
  target uint32_t name(const float* __restrict x, const float* __restrict codes, const float* __restrict half_norms, \
                       int64_t dim, const float* __restrict energy, const float* __restrict worst,                   \
                       float* __restrict scores, uint32_t* __restrict passed) {                                      \
    typedef float Floats __attribute__((vector_size(width * 4), aligned(4), may_alias));                             \
    uint32_t any = 0;                                                                                                \
    for (int64_t r = 0; r < tile; ++r) passed[r] = 0;                                                                \
    for (int64_t t = 0; t < lanes; t += width) {                                                                     \
      const Floats start = *reinterpret_cast<const Floats*>(half_norms + t);                                         \
      Floats h[tile];                                                                                                \
      _Pragma("GCC unroll 12") for (int r = 0; r < tile; ++r) h[r] = start;                                          \
      for (int64_t d = 0; d < dim; ++d) {                                                                            \
        const Floats c = *reinterpret_cast<const Floats*>(codes + d * lanes + t);                                    \
        _Pragma("GCC unroll 12") for (int r = 0; r < tile; ++r) h[r] -= x[d * tile + r] * c;                         \
      }                                                                                                              \
      _Pragma("GCC unroll 12") for (int r = 0; r < tile; ++r) {                                                      \
        const Floats score = h[r] + energy[r];                                                                       \
        *reinterpret_cast<Floats*>(scores + r * lanes + t) = score;                                                  \
        const uint32_t bits = lanes_of(score, worst[r]);                                                             \
        passed[r] |= bits << t;                                                                                      \
        any |= bits;                                                                                                 \
      }                                                                                                              \
    }                                                                                                                \
    return any;                                                                                                      \
  }

typedef float Floats4 __attribute__((vector_size(16)));
inline uint32_t at_most_4(Floats4 score, float worst) {
  uint32_t bits = 0;
  for (int j = 0; j < 4; ++j) bits |= static_cast<uint32_t>(score[j] <= worst) << j;
  return bits;
}
NACRE_SCORES(scores_4, , 4, at_most_4)
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
// Macros, because functions with vector arguments have another calling convention outside of the target's functions.
#define NACRE_AT_MOST_8(score, worst) \
  static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)(score), _mm256_set1_ps(worst), _CMP_LE_OQ)))
#define NACRE_AT_MOST_16(score, worst) \
  static_cast<uint32_t>(_mm512_cmp_ps_mask((__m512)(score), _mm512_set1_ps(worst), _CMP_LE_OQ))
NACRE_SCORES(scores_8, __attribute__((target("arch=x86-64-v3"))), 8, NACRE_AT_MOST_8)
NACRE_SCORES(scores_16, __attribute__((target("arch=x86-64-v4"))), 16, NACRE_AT_MOST_16)
#undef NACRE_AT_MOST_8
#undef NACRE_AT_MOST_16
#endif
#undef NACRE_SCORES

Scores select_scores() {
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
  if (vector_width() == 16) return scores_16;
  if (vector_width() == 8) return scores_8;
#endif
  return scores_4;
}

// out[r] = half the energy of hypothesis r of a tile [dim][tile], squares added in channel order.
NACRE_CLONES void half_energies(const float* __restrict x, int64_t dim, float* __restrict out) {
  float sum[tile] = {};
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t r = 0; r < tile; ++r) sum[r] += x[d * tile + r] * x[d * tile + r];
  for (int64_t r = 0; r < tile; ++r) out[r] = 0.5f * sum[r];
}

// A candidate as one integer that sorts as the candidates do: by score, mapped to an unsigned integer of the same
// order, then by hypothesis and code.
uint64_t key_of(float score, int64_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes +0: they compare equal
  const uint32_t order = bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
  return uint64_t{order} << 32 | static_cast<uint64_t>(id);
}
float score_of(uint64_t key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(order ^ ((order & 0x80000000u) != 0 ? 0x80000000u : 0xffffffffu));
}
int64_t id_of(uint64_t key) { return static_cast<int64_t>(key & 0xffffffffu); }

// The best candidates of one row so far, best first. An insertion sort: few candidates pass the bound `worst`, and the
// beam is short.
struct Kept {
  std::array<uint64_t, max_rvq_beam> keys;
  int64_t count = 0;

  // Inserts the candidate if it is among the best `beam`.
  void insert(uint64_t key, int64_t beam) {
    if (count == beam) {
      if (key >= keys[size_t(count - 1)]) return;
    } else {
      ++count;
    }
    size_t at = size_t(count - 1);
    for (; at > 0 && key < keys[at - 1]; --at) keys[at] = keys[at - 1];
    keys[at] = key;
  }
};

/// The nearest code of a row's greedy hypothesis so far, by its score. Scores are sums and round: codes of different
/// half distances may share a score, and then the scores do not tell which one is nearest.
struct Nearest {
  float score = std::numeric_limits<float>::infinity();
  int64_t code = -1;  // -1: no finite score
  bool tied = false;  // other codes have the same score

  void offer(float s, int64_t k) {
    tied = tied ? !(s < score) : s == score;
    if (s < score) score = s, code = k;
  }
};

// Start of column c in tiles [tile index][dim][tile].
float* column(float* tiles, int64_t c, int64_t dim) { return tiles + c / tile * tile * dim + c % tile; }

}  // namespace

namespace {

/// Blocks of a codebook that stay in the second-level cache while all tiles pass.
int64_t chunk_of(const Sizes& n) {
  return std::clamp<int64_t>(cached_floats / (lanes * n.dim), 1, round_up(n.codes, lanes) / lanes);
}
/// Where a search takes its blocks from.
struct Book {
  const float* packed;    // null: parts of `codebook` are packed into `part` when they are read
  const float* codebook;  // [codes][dim]
  float* part;
};

/// Resolves ties of score among the codes of greedy hypotheses by the search of beam = 1 itself. `room` has space for
/// max_rows rows and the buffer of that search.
void resolve_ties(const Sizes& n, const Book& book, float* current, int64_t rows, const int64_t* greedy,
                  Nearest* nearest_of, float* room) {
  int64_t tied[max_rows], count = 0;
  int32_t codes[max_rows];
  float* const buffer = room + max_rows * n.dim;
  for (int64_t r = 0; r < rows; ++r) {
    if (greedy[r] < 0 || !nearest_of[r].tied) continue;
    const float* from = column(current, greedy[r] * rows + r, n.dim);
    for (int64_t d = 0; d < n.dim; ++d) room[count * n.dim + d] = from[d * tile];
    tied[count++] = r;
  }
  if (count == 0) return;
  if (book.packed != nullptr)
    nearest(room, count, n.dim, book.packed, n.codes, VqMetric::euclidean, buffer, codes, 1);
  else
    nearest_in_place(room, count, n.dim, book.codebook, n.codes, VqMetric::euclidean, buffer, codes, 1);
  for (int64_t i = 0; i < count; ++i) nearest_of[tied[i]].code = codes[i];
}

/// The greedy hypothesis is among those kept: if it is not one of the best, it takes the last place. Returns its place.
int64_t keep_greedy(Kept& k, uint64_t key, int64_t beam) {
  for (int64_t j = 0; j < k.count; ++j)
    if (k.keys[size_t(j)] == key) return j;
  // All candidates of a list that is not full are in it, so this one is full.
  k.keys[size_t(beam - 1)] = key;
  return beam - 1;
}

}  // namespace

int64_t slot_size(const Sizes& n, bool in_place) {
  // Residuals of this stage and of the next; the paths: parent hypothesis and code of each row, stage and hypothesis;
  // rows with ties and the buffer of their search; then, in place, a packed part of a codebook.
  return max_rows * n.beam * (2 * n.dim + n.stages) + max_rows * n.dim +
         std::max(buffer_size(max_rows, n.dim), in_place_buffer_size(n.dim)) +
         (in_place ? packed_size(chunk_of(n) * lanes, n.dim) : 0);
}

void search(const float* z, int64_t rows, const Sizes& n, const float* codebooks, const float* packed,
            const int64_t* used, float* slot, int32_t* codes) {
  // For each stage: score all hypotheses of all rows against all codes; keep the best `beam` candidates of each row;
  // subtract their codes, which gives the next stage's hypotheses. At the end the best hypothesis is followed back
  // through its parents. The sequence of beam = 1 is followed beside, and always kept.
  //
  // A column is a hypothesis of a row, stored as in vq_search.h: [tile index][dim][tile]. An id is hypothesis * codes +
  // code.
  static const Scores scores_of = select_scores();
  const int64_t blocks = round_up(n.codes, lanes) / lanes;
  const int64_t chunk = chunk_of(n);
  float *current = slot, *next = slot + max_rows * n.beam * n.dim;
  int32_t* paths = reinterpret_cast<int32_t*>(slot + 2 * max_rows * n.beam * n.dim);
  float* const room = slot + max_rows * n.beam * (2 * n.dim + n.stages);
  float* const part = room + max_rows * n.dim + std::max(buffer_size(max_rows, n.dim), in_place_buffer_size(n.dim));
  // All of fixed size, on the stack. `energy` is per column, `row_worst` and `kept` per row, `scores` and `passed` of
  // one tile and block.
  float energy[max_columns], worst[tile], row_worst[max_rows], scores[tile * lanes];
  uint32_t passed[tile];
  Kept kept[max_rows];
  int64_t width = 1;  // hypotheses per row in this stage
  int64_t live[max_rows];
  int64_t greedy[max_rows];  // the hypothesis with the codes of beam = 1; -1: they have no finite score
  Nearest nearest_of[max_rows];

  // Column hypothesis * rows + row: the best hypotheses come first and set tight bounds for the others.
  for (int64_t r = 0; r < rows; ++r) {
    live[r] = 1, greedy[r] = 0;
    for (int64_t d = 0; d < n.dim; ++d) column(current, r, n.dim)[d * tile] = z[r * n.dim + d];
  }
  for (int64_t s = 0; s < n.stages; ++s) {
    const Book book{.packed = packed == nullptr ? nullptr : packed + s * packed_size(n.codes, n.dim),
                    .codebook = codebooks + s * n.codes * n.dim,
                    .part = part};
    const int64_t columns = rows * width, tiles = round_up(columns, tile) / tile;
    for (int64_t c = columns; c < tiles * tile; ++c)
      for (int64_t d = 0; d < n.dim; ++d) column(current, c, n.dim)[d * tile] = 0;
    for (int64_t t = 0; t < tiles; ++t) half_energies(current + t * tile * n.dim, n.dim, energy + t * tile);
    // Columns without a hypothesis have infinite energy, so that none of their candidates passes.
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = live[r]; j < width; ++j) energy[j * rows + r] = std::numeric_limits<float>::infinity();
      kept[r].count = 0;
      nearest_of[r] = {};
    }
    std::fill(energy + columns, energy + tiles * tile, std::numeric_limits<float>::infinity());
    std::fill(row_worst, row_worst + max_rows, largest);

    // A chunk of the codebook stays in the second-level cache while all tiles pass. The bounds become tighter on the
    // way; they only skip candidates that cannot be kept, so the order of this loop does not change the result.
    for (int64_t begin = 0; begin < blocks; begin += chunk) {
      const int64_t end = std::min(begin + chunk, blocks);
      const float *codes_of = book.part, *norms_of = book.part + chunk * lanes * n.dim;
      if (book.packed != nullptr)
        codes_of = book.packed + begin * lanes * n.dim, norms_of = book.packed + (blocks * n.dim + begin) * lanes;
      else
        pack_blocks(book.codebook, n.codes, n.dim, VqMetric::euclidean, begin, end - begin, book.part,
                    book.part + chunk * lanes * n.dim);
      for (int64_t t = 0; t < tiles; ++t) {
        // Columns whose nearest code is wanted, kept or not: their scores pass up to the least one, too.
        bool watches = false, watched[tile];
        int64_t row_of[tile];
        for (int64_t c = 0; c < tile; ++c) {
          row_of[c] = (t * tile + c) % rows;
          watched[c] = t * tile + c < columns && (t * tile + c) / rows == greedy[row_of[c]];
          watches = watches || watched[c];
        }
        // With twelve rows a tile is one hypothesis of each row, so the rows' bounds are the columns' bounds.
        const bool direct = rows == tile && !watches;
        for (int64_t b = 0; b < end - begin; ++b) {
          for (int64_t c = 0; !direct && c < tile; ++c) {
            const float bound = row_worst[row_of[c]];
            worst[c] = watched[c] ? std::max(bound, std::min(nearest_of[row_of[c]].score, largest)) : bound;
          }
          if (!scores_of(current + t * tile * n.dim, codes_of + b * lanes * n.dim, norms_of + b * lanes, n.dim,
                         energy + t * tile, direct ? row_worst : worst, scores, passed))
            continue;
          for (int64_t c = 0; c < tile; ++c) {
            // After the first blocks few scores pass, so this loop costs little beside the products.
            if (passed[c] == 0) continue;
            const int64_t hypothesis = (t * tile + c) / rows, row = row_of[c];
            Kept& k = kept[row];
            for (uint32_t bits = passed[c]; bits != 0; bits &= bits - 1) {
              const int64_t lane = std::countr_zero(bits), code = (begin + b) * lanes + lane;
              const float score = scores[c * lanes + lane];
              if (watched[c]) nearest_of[row].offer(score, code);
              k.insert(key_of(score, hypothesis * n.codes + code), n.beam);
            }
            // Before the list is full, every finite candidate passes. Scores equal to the bound pass, too: the key
            // decides by hypothesis and code.
            if (k.count == n.beam) row_worst[row] = score_of(k.keys[size_t(n.beam - 1)]);
          }
        }
      }
    }
    resolve_ties(n, book, current, rows, greedy, nearest_of, room);

    // The first stages may have fewer candidates than the beam is wide.
    const int64_t next_width = std::min(n.beam, width * n.codes);
    for (int64_t r = 0; r < rows; ++r) {
      Kept& k = kept[r];
      if (k.count == 0) k.keys[0] = 0, k.count = 1;  // NaN or overflow: code 0 of the best hypothesis
      const Nearest& least = nearest_of[r];
      greedy[r] = least.code < 0 ? -1 : keep_greedy(k, key_of(least.score, greedy[r] * n.codes + least.code), n.beam);
      live[r] = k.count;
      if (s + 1 == used[r]) live[r] = 1, greedy[r] = 0;
      for (int64_t j = 0; j < live[r]; ++j) {
        const int64_t id = id_of(k.keys[size_t(j)]), code = id % n.codes;
        paths[(r * n.stages + s) * n.beam + j] = static_cast<int32_t>(id);
        const float* from = column(current, id / n.codes * rows + r, n.dim);
        const float* q = codebooks + (s * n.codes + code) * n.dim;
        float* to = column(next, j * rows + r, n.dim);
        for (int64_t d = 0; d < n.dim; ++d) to[d * tile] = from[d * tile] - q[d];
      }
      for (int64_t j = live[r]; j < next_width; ++j)
        for (int64_t d = 0; d < n.dim; ++d) column(next, j * rows + r, n.dim)[d * tile] = 0;
    }
    std::swap(current, next);
    width = next_width;
  }
  for (int64_t r = 0; r < rows; ++r)
    // From the last stage back: hypothesis 0 is the best, id / codes is its parent.
    for (int64_t s = n.stages - 1, j = 0; s >= 0; --s) {
      const int64_t id = paths[(r * n.stages + s) * n.beam + j];
      codes[r * n.stages + s] = static_cast<int32_t>(id % n.codes);
      j = id / n.codes;
    }
}

}  // namespace nacre::rvq_beam
