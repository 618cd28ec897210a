// The gated delta rule and its short convolution on a CPU, forward and backward.
//
// A plain C interface without torch headers: it compiles in about a second on the user's machine.
// The maths is that of torch.py, with chunks of 16 tokens, and its derivative:
//
//     w_t = v_t - R_t S0^T k_t - sum_{i<t} D'_ti (k_t . k_i) u_i          u_t = beta_t w_t
//     o_t = P_t S0^T q_t + sum_{i<=t} D_ti (q_t . k_i) u_i
//     S   = P_C S0 + sum_i E_i k_i u_i^T
//
// P_t is the decay from the chunk's start up to token t, D_ti from after i up to t, E_i = D_Ci.
// Form "fla" reads what is erased after the decay (R = P, D' = D), form "paper" before it (R_t =
// P_(t-1), D'_ti = D_(t-1)i).
//
// All arithmetic runs on padded scratch rows, whole vectors wide; padding stays zero.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "matrix.h"
#include "short_conv.h"

namespace {

constexpr Size kChunk = 16;  // tokens of a triangular system

}  // namespace

// ---- interface

// Mirrored by the ctypes structures of cpu.py, field by field.
extern "C" {

struct Stream {  // (batch, tokens, heads, size), the last contiguous
  const void* data;
  std::int64_t batch_stride, token_stride, head_stride;
};

struct DeltaProblem {
  std::int64_t batch, tokens, key_heads, value_heads, key_size, value_size;
  std::int64_t span;     // tokens between the boundary states
  std::int64_t segment;  // tokens between the states that the backward pass starts from
  std::int64_t stored;   // states stored a span: its boundary, or one a segment
  std::int64_t paper;    // 1 for the form "paper"
  std::int64_t threads;
  double scale;
  struct Stream q, k, v;
  const void* g;  // (batch, tokens, value_heads), as all that follows contiguous
  const void* beta;
  const void* start;  // (batch, value_heads, key_size, value_size)
  void* o;            // (batch, tokens, value_heads, value_size)
  void* final_state;
  void* states;    // (batch, spans * stored, value_heads, key_size, value_size)
  void* residual;  // null without a backward pass, or w, like o
};

struct DeltaGradients {
  const void* o;            // null, or like o
  const void* boundary;     // null, or (batch, spans, value_heads, key_size, value_size)
  const void* final_state;  // null, or like start
  void* q;                  // (batch, tokens, value_heads, key_size): one a value head
  void* k;
  void* v;
  void* g;
  void* beta;
  void* start;
};
}

namespace {

// ---- one head

template <class Real>
class Head {
 public:
  explicit Head(const DeltaProblem& p, bool backward)
      : p_(p),
        keys_(Lanes<Real>::padded(p.key_size)),
        values_(Lanes<Real>::padded(p.value_size)),
        column_(Lanes<Real>::padded(kChunk)),
        scratch_(numbers(backward)) {
    queries_keys_ = scratch_.take(2 * kChunk * keys_);
    v_ = scratch_.take(kChunk * values_);
    u_ = scratch_.take(kChunk * values_);
    read_ = scratch_.take(2 * kChunk * values_);
    k_columns_ = scratch_.take(keys_ * column_);
    overlap_ = scratch_.take(2 * kChunk * column_);
    weighted_ = scratch_.take(2 * kChunk * keys_);
    state_ = scratch_.take(keys_ * values_);
    if (!backward) return;
    w_ = scratch_.take(kChunk * values_);
    d_o_v_ = scratch_.take(2 * kChunk * values_);
    d_u_ = scratch_.take(kChunk * values_);
    u_columns_ = scratch_.take(values_ * column_);
    pairs_ = scratch_.take(2 * kChunk * column_);
    state_read_ = scratch_.take(2 * kChunk * keys_);
    d_state_read_ = scratch_.take(kChunk * keys_);
    d_q_ = scratch_.take(kChunk * keys_);
    d_k_ = scratch_.take(kChunk * keys_);
    d_state_ = scratch_.take(keys_ * values_);
    d_state_columns_ = scratch_.take(keys_ * values_);
    starts_ = scratch_.take(chunks_of_segment() * keys_ * values_);
  }

  void forward(Size item, Size head) {
    clear_padding();
    load_matrix(state_at(p_.start, item, head), state_);
    const Size spans = (p_.tokens + p_.span - 1) / p_.span;
    for (Size span = 0; span < spans; ++span)
      for (Size segment = 0; segment < segments(); ++segment) {
        if (segment < p_.stored) store_matrix(state_, stored(item, head, span, segment));
        const auto [first, last] = range(span, segment);
        for (Size t = first; t < last; t += kChunk)
          forward_chunk(item, head, t, std::min(kChunk, last - t));
      }
    store_matrix(state_, state_at(p_.final_state, item, head));
  }

  void backward(const DeltaGradients& d, Size item, Size head) {
    clear_padding();
    zero(keys_ * values_, d_state_);
    if (d.final_state != nullptr) load_matrix(state_at(d.final_state, item, head), d_state_);
    transpose(d_state_, d_state_columns_);
    const Size spans = (p_.tokens + p_.span - 1) / p_.span;
    for (Size span = spans - 1; span >= 0; --span) {
      for (Size segment = segments() - 1; segment >= 0; --segment)
        backward_segment(d, item, head, span, segment);
      if (d.boundary == nullptr) continue;
      const Real* boundary =
          static_cast<const Real*>(d.boundary) + matrix((item * spans + span), head);
      for (Size i = 0; i < p_.key_size; ++i)
        for (Size j = 0; j < p_.value_size; ++j)
          d_state_[i * values_ + j] += boundary[i * p_.value_size + j];
      transpose(d_state_, d_state_columns_);
    }
    store_matrix(d_state_, state_at(d.start, item, head));
  }

 private:
  struct Range {
    Size first, last;
  };

  Size numbers(bool backward) const {
    const Size state = keys_ * values_, rows = kChunk * (keys_ + values_),
               square = 2 * kChunk * column_;
    const Size columns = (keys_ + values_) * column_;
    const Size both = state + 4 * rows + columns + square;
    const Size slack = 24 * kAlign;
    return both + slack +
           (backward ? (2 + chunks_of_segment()) * state + 6 * rows + columns + square : 0);
  }

  // A NaN of the last head may have reached the padding, where it would reach this one.
  void clear_padding() {
    if (keys_ != p_.key_size || values_ != p_.value_size) scratch_.clear();
  }

  // -- where things lie
  Size segments() const { return (p_.span + p_.segment - 1) / p_.segment; }
  Size chunks_of_segment() const { return (p_.segment + kChunk - 1) / kChunk; }
  Range range(Size span, Size segment) const {
    const Size first = span * p_.span + segment * p_.segment;
    const Size end = std::min(p_.tokens, (span + 1) * p_.span);
    return {first, std::min(end, first + p_.segment)};
  }
  Size matrix(Size row, Size head) const {
    return (row * p_.value_heads + head) * p_.key_size * p_.value_size;
  }
  template <class Pointer>
  auto state_at(Pointer* states, Size item, Size head) const {
    using Number = std::conditional_t<std::is_const_v<Pointer>, const Real, Real>;
    return static_cast<Number*>(states) + matrix(item, head);
  }
  Real* stored(Size item, Size head, Size span, Size segment) const {
    const Size spans = (p_.tokens + p_.span - 1) / p_.span;
    return static_cast<Real*>(p_.states) +
           matrix((item * spans + span) * p_.stored + segment, head);
  }
  Size token(Size item, Size t, Size head) const {
    return (item * p_.tokens + t) * p_.value_heads + head;
  }

  // -- in and out of padded rows
  void load_matrix(const Real* from, Real* to) const {
    for (Size i = 0; i < p_.key_size; ++i)
      std::memcpy(to + i * values_, from + i * p_.value_size, p_.value_size * sizeof(Real));
  }
  void store_matrix(const Real* from, Real* to) const {
    for (Size i = 0; i < p_.key_size; ++i)
      std::memcpy(to + i * p_.value_size, from + i * values_, p_.value_size * sizeof(Real));
  }
  void transpose(const Real* from, Real* to) const {  // (keys, values) to (values, keys)
    for (Size i = 0; i < p_.key_size; i += 8)
      for (Size j = 0; j < p_.value_size; ++j)
        for (Size l = i; l < std::min(i + 8, p_.key_size); ++l)
          to[j * keys_ + l] = from[l * values_ + j];
  }
  static void load_rows(const Stream& x, Size item, Size t, Size head, Size n, Size size, Size row,
                        Real* to) {
    const Real* from =
        static_cast<const Real*>(x.data) + item * x.batch_stride + head * x.head_stride;
    for (Size i = 0; i < n; ++i)
      std::memcpy(to + i * row, from + (t + i) * x.token_stride, size * sizeof(Real));
  }
  void load_values(const void* x, Size item, Size t, Size head, Size n, Real* to) const {
    const Size step = p_.value_heads * p_.value_size;
    const Real* from = static_cast<const Real*>(x) + token(item, t, head) * p_.value_size;
    for (Size i = 0; i < n; ++i)
      std::memcpy(to + i * values_, from + i * step, p_.value_size * sizeof(Real));
  }
  void store_rows(const Real* from, Size row, Size size, void* x, Size item, Size t, Size head,
                  Size n) const {
    Real* to = static_cast<Real*>(x) + token(item, t, head) * size;
    for (Size i = 0; i < n; ++i)
      std::memcpy(to + i * p_.value_heads * size, from + i * row, size * sizeof(Real));
  }

  // -- a chunk
  // q (scaled), k and their dot products; the decays P, D, R, D', E.
  void load_chunk(Size item, Size head, Size t, Size n) {
    const Size key_head = head / (p_.value_heads / p_.key_heads);
    Real *q = queries_keys_, *k = queries_keys_ + n * keys_;
    load_rows(p_.q, item, t, key_head, n, p_.key_size, keys_, q);
    load_rows(p_.k, item, t, key_head, n, p_.key_size, keys_, k);
    scale_by(n * keys_, static_cast<Real>(p_.scale), q);
    columns_of(k, n, keys_, p_.key_size, k_columns_);
    zero(2 * n * column_, overlap_);
    multiply(2 * n, column_, p_.key_size, q, keys_, Size{1}, k_columns_, column_, overlap_,
             column_);
    for (Size i = 0; i < n; ++i)
      beta_[i] = static_cast<const Real*>(p_.beta)[token(item, t + i, head)];
    Real decay[kChunk];
    for (Size i = 0; i < n; ++i)
      decay[i] = std::exp(static_cast<const Real*>(p_.g)[token(item, t + i, head)]);
    load_decays(decay, n);
  }

  void load_decays(const Real* decay, Size n) {
    Real product = 1;
    for (Size i = 0; i < n; ++i) {
      read_decay_[i] = product;
      product = vanish(product * decay[i]);
      decay_[i] = product;
      if (!p_.paper) read_decay_[i] = product;
    }
    for (Size i = 0; i < n; ++i) {
      between_[i][i] = 1;
      for (Size s = i + 1; s < n; ++s) between_[s][i] = vanish(between_[s - 1][i] * decay[s]);
    }
  }
  // Far below what float32 can tell from zero beside one; keeps denormal numbers, which are slow,
  // out.
  static Real vanish(Real x) { return x < Real(1e-30) ? Real(0) : x; }
  // D'_ti for i < t
  Real erased(Size t, Size i) const { return p_.paper ? between_[t - 1][i] : between_[t][i]; }

  void columns_of(const Real* rows, Size n, Size row, Size size, Real* columns) const {
    for (Size i = 0; i < size; ++i)
      for (Size t = 0; t < n; ++t) columns[i * column_ + t] = rows[t * row + i];
    // left-over columns of a longer chunk meet only coefficients that nobody reads
  }

  void forward_chunk(Size item, Size head, Size t, Size n) {
    load_chunk(item, head, t, n);
    load_rows(p_.v, item, t, head, n, p_.value_size, values_, v_);
    zero(2 * n * values_, read_);
    multiply(2 * n, values_, p_.key_size, queries_keys_, keys_, Size{1}, state_, values_, read_,
             values_);
    Real *o = read_, *erased_read = read_ + n * values_;  // S0^T q and S0^T k
    weigh_overlap(n);
    for (Size i = 0; i < n; ++i) {
      Real *w = v_ + i * values_, *u = u_ + i * values_;
      for (Size c = 0; c < values_; ++c) w[c] -= read_decay_[i] * erased_read[i * values_ + c];
      multiply(Size{1}, values_, i, erase_[i], Size{0}, Size{1}, u_, values_, w, values_);
      for (Size c = 0; c < values_; ++c) u[c] = beta_[i] * w[c];
      scale_by(values_, decay_[i], o + i * values_);
    }
    multiply(n, values_, n, reach_[0], kChunk, Size{1}, u_, values_, o, values_);
    store_rows(o, values_, p_.value_size, p_.o, item, t, head, n);
    if (p_.residual != nullptr)
      store_rows(v_, values_, p_.value_size, p_.residual, item, t, head, n);
    weigh_keys(n);
    scale_by(keys_ * values_, decay_[n - 1], state_);
    multiply(p_.key_size, values_, n, weighted_, Size{1}, keys_, u_, values_, state_, values_);
  }

  // How updates reach outputs, D (q . k) for i <= t, and later erased reads, -D' (k . k) for i < t.
  void weigh_overlap(Size n) {
    const Real *qk = overlap_, *kk = overlap_ + n * column_;
    for (Size t = 0; t < n; ++t)
      for (Size i = 0; i < n; ++i) {
        reach_[t][i] = i <= t ? between_[t][i] * qk[t * column_ + i] : Real(0);
        erase_[t][i] = i < t ? -erased(t, i) * kk[t * column_ + i] : Real(0);
      }
  }

  void weigh_keys(Size n) {  // E_i k_i
    const Real* k = queries_keys_ + n * keys_;
    for (Size i = 0; i < n; ++i)
      for (Size c = 0; c < keys_; ++c)
        weighted_[i * keys_ + c] = between_[n - 1][i] * k[i * keys_ + c];
  }

  void load_updates(Size item, Size head, Size t, Size n) {
    load_values(p_.residual, item, t, head, n, w_);
    for (Size i = 0; i < n; ++i)
      for (Size c = 0; c < values_; ++c) u_[i * values_ + c] = beta_[i] * w_[i * values_ + c];
  }

  void backward_segment(const DeltaGradients& d, Size item, Size head, Size span, Size segment) {
    const auto [first, last] = range(span, segment);
    if (first >= last) return;
    const Size chunks = (last - first + kChunk - 1) / kChunk;
    load_matrix(stored(item, head, span, segment), state_);
    transpose(state_, starts_);  // states before each chunk, as (values, keys)
    for (Size c = 0; c + 1 < chunks; ++c) {
      load_chunk(item, head, first + c * kChunk, kChunk);
      load_updates(item, head, first + c * kChunk, kChunk);
      weigh_keys(kChunk);
      Real *now = starts_ + c * keys_ * values_, *next = now + keys_ * values_;
      for (Size i = 0; i < keys_ * values_; ++i) next[i] = decay_[kChunk - 1] * now[i];
      multiply(p_.value_size, keys_, kChunk, u_, Size{1}, values_, weighted_, keys_, next, keys_);
    }
    for (Size c = chunks - 1; c >= 0; --c) {
      const Size t = first + c * kChunk;
      backward_chunk(d, item, head, t, std::min(kChunk, last - t), starts_ + c * keys_ * values_);
    }
  }

  void backward_chunk(const DeltaGradients& d, Size item, Size head, Size t, Size n,
                      const Real* start) {
    load_chunk(item, head, t, n);
    load_updates(item, head, t, n);
    Real *d_o = d_o_v_, *d_v = d_o_v_ + n * values_;
    zero(2 * n * values_, d_o_v_);
    if (d.o != nullptr) load_values(d.o, item, t, head, n, d_o);
    solve_updates(n, d_o, d_v);
    store_rows(d_v, values_, p_.value_size, d.v, item, t, head, n);
    // do . u above dv . u; S0 do above S0 dv; dS u
    columns_of(u_, n, values_, p_.value_size, u_columns_);
    zero(2 * n * column_, pairs_);
    multiply(2 * n, column_, p_.value_size, d_o, values_, Size{1}, u_columns_, column_, pairs_,
             column_);
    zero(2 * n * keys_, state_read_);
    multiply(2 * n, keys_, p_.value_size, d_o, values_, Size{1}, start, keys_, state_read_, keys_);
    zero(n * keys_, d_state_read_);
    multiply(n, keys_, p_.value_size, u_, values_, Size{1}, d_state_columns_, keys_, d_state_read_,
             keys_);
    weigh_pairs(n);
    gate_gradients(d, item, head, t, n, start);
    key_gradients(n);
    store_rows(d_q_, keys_, p_.key_size, d.q, item, t, head, n);
    store_rows(d_k_, keys_, p_.key_size, d.k, item, t, head, n);
    carry_gradient(n, d_o);
  }

  // Gradients du of the updates and dv = beta du, last token first. The erased reads have -dv.
  void solve_updates(Size n, const Real* d_o, Real* d_v) {
    const Real* k = queries_keys_ + n * keys_;
    weigh_overlap(n);
    zero(n * values_, d_u_);
    multiply(n, values_, p_.key_size, k, keys_, Size{1}, d_state_, values_, d_u_, values_);
    for (Size i = 0; i < n; ++i) scale_by(values_, between_[n - 1][i], d_u_ + i * values_);
    multiply(n, values_, n, reach_[0], Size{1}, kChunk, d_o, values_, d_u_, values_);
    for (Size i = n - 1; i >= 0; --i) {
      Real *d_u = d_u_ + i * values_, *later = d_v + (i + 1) * values_;
      if (i + 1 < n)
        multiply(Size{1}, values_, n - i - 1, erase_[i + 1] + i, Size{0}, kChunk, later, values_,
                 d_u, values_);
      for (Size c = 0; c < values_; ++c) d_v[i * values_ + c] = beta_[i] * d_u[c];
    }
  }

  // From do . u and dv . u to D (do . u) for i <= t and -D' (dv . u) for i < t.
  void weigh_pairs(Size n) {
    Real *from_o = pairs_, *from_v = pairs_ + n * column_;
    for (Size t = 0; t < n; ++t)
      for (Size i = 0; i < n; ++i) {
        from_o[t * column_ + i] *= i <= t ? between_[t][i] : Real(0);
        from_v[t * column_ + i] *= i < t ? -erased(t, i) : Real(0);
      }
  }

  // Gradients of beta and g. Everything that token i decays is added up term by term: differences
  // of running sums would cancel.
  void gate_gradients(const DeltaGradients& d, Size item, Size head, Size t, Size n,
                      const Real* start) {
    const Real *q = queries_keys_, *k = queries_keys_ + n * keys_;
    const Real *qk = overlap_, *kk = overlap_ + n * column_;
    const Real *from_o = pairs_, *from_v = pairs_ + n * column_;
    const Size shift =
        p_.paper ? 1 : 0;  // the erased read of s knows the decays before s + 1 - shift
    Real total[kChunk] = {};
    for (Size s = 0; s < n; ++s) {
      Real sum_o = decay_[s] * dot(keys_, q + s * keys_, state_read_ + s * keys_);
      Real sum_v = -read_decay_[s] * dot(keys_, k + s * keys_, state_read_ + (n + s) * keys_);
      for (Size i = 0; i <= s; ++i) {
        total[i] += sum_o;
        if (i + shift <= s) total[i] += sum_v;
        sum_o += from_o[s * column_ + i] * qk[s * column_ + i];
        sum_v += from_v[s * column_ + i] * kk[s * column_ + i];
      }
    }
    Real kept = decay_[n - 1] * dot(keys_ * values_, start, d_state_columns_);
    for (Size i = 0; i < n; ++i) {
      total[i] += kept;
      kept += between_[n - 1][i] * dot(keys_, k + i * keys_, d_state_read_ + i * keys_);
      static_cast<Real*>(d.g)[token(item, t + i, head)] = total[i];
      static_cast<Real*>(d.beta)[token(item, t + i, head)] =
          dot(values_, d_u_ + i * values_, w_ + i * values_);
    }
  }

  void key_gradients(Size n) {
    const Real *q = queries_keys_, *k = queries_keys_ + n * keys_;
    const Real *from_o = pairs_, *from_v = pairs_ + n * column_;
    for (Size s = 0; s < n; ++s)
      for (Size c = 0; c < keys_; ++c) {
        const Size at = s * keys_ + c;
        d_q_[at] = decay_[s] * state_read_[at];
        d_k_[at] =
            between_[n - 1][s] * d_state_read_[at] - read_decay_[s] * state_read_[n * keys_ + at];
      }
    multiply(n, keys_, n, from_o, column_, Size{1}, k, keys_, d_q_, keys_);
    multiply(n, keys_, n, from_o, Size{1}, column_, q, keys_, d_k_, keys_);
    multiply(n, keys_, n, from_v, column_, Size{1}, k, keys_, d_k_, keys_);
    multiply(n, keys_, n, from_v, Size{1}, column_, k, keys_, d_k_, keys_);
    scale_by(n * keys_, static_cast<Real>(p_.scale), d_q_);
  }

  // dS0 = P_C dS + sum_t P_t q_t do_t^T - R_t k_t dv_t^T, in both layouts.
  void carry_gradient(Size n, const Real* d_o) {
    for (Size s = 0; s < n; ++s)
      for (Size c = 0; c < keys_; ++c) {
        weighted_[s * keys_ + c] = decay_[s] * queries_keys_[s * keys_ + c];
        weighted_[(n + s) * keys_ + c] = -read_decay_[s] * queries_keys_[(n + s) * keys_ + c];
      }
    scale_by(keys_ * values_, decay_[n - 1], d_state_);
    multiply(p_.key_size, values_, 2 * n, weighted_, Size{1}, keys_, d_o, values_, d_state_,
             values_);
    scale_by(keys_ * values_, decay_[n - 1], d_state_columns_);
    multiply(p_.value_size, keys_, 2 * n, d_o, Size{1}, values_, weighted_, keys_, d_state_columns_,
             keys_);
  }

  const DeltaProblem& p_;
  const Size keys_, values_, column_;  // padded sizes
  Scratch<Real> scratch_;
  Real beta_[kChunk], decay_[kChunk], read_decay_[kChunk], between_[kChunk][kChunk];
  Real reach_[kChunk][kChunk], erase_[kChunk][kChunk];
  // rows of tokens; two of them mean q above k, or do above dv
  Real *queries_keys_, *v_, *u_, *read_, *k_columns_, *overlap_, *weighted_, *state_;
  Real *w_, *d_o_v_, *d_u_, *u_columns_, *pairs_, *state_read_, *d_state_read_, *d_q_, *d_k_;
  Real *d_state_, *d_state_columns_, *starts_;
};

template <class Real>
int run_delta(const DeltaProblem& p, const DeltaGradients* d) noexcept {
  try {
    for_each(p.batch * p.value_heads, p.threads, [&](auto next) {
      Head<Real> head(p, d != nullptr);
      for (Size i = next(); i < p.batch * p.value_heads; i = next())
        if (d == nullptr)
          head.forward(i / p.value_heads, i % p.value_heads);
        else
          head.backward(*d, i / p.value_heads, i % p.value_heads);
    });
  } catch (...) {
    return 1;  // no memory, or no thread
  }
  return 0;
}

}  // namespace

extern "C" {
int delta_forward_float32(const DeltaProblem* p) { return run_delta<float>(*p, nullptr); }
int delta_forward_float64(const DeltaProblem* p) { return run_delta<double>(*p, nullptr); }
int delta_backward_float32(const DeltaProblem* p, const DeltaGradients* d) {
  return run_delta<float>(*p, d);
}
int delta_backward_float64(const DeltaProblem* p, const DeltaGradients* d) {
  return run_delta<double>(*p, d);
}
}
