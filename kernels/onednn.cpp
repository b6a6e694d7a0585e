#include "onednn.h"

#include <omp.h>

#include <dnnl.hpp>
#include <memory>
#include <string>
#include <unordered_map>

#include "context_impl.h"
#include "host.h"

namespace nacre::onednn {
namespace {

using Memory_ = dnnl::memory;
using Arguments_ = std::unordered_map<int, Memory_>;

// oneDNN divides the work when a primitive is made, among as many threads as OpenMP would start then, and relies on
// getting them when it runs.
class Threads {
 public:
  explicit Threads(int n) : before_(omp_get_max_threads()) {
    if (n != before_) omp_set_num_threads(n);
    now_ = n;
  }
  ~Threads() {
    if (now_ != before_) omp_set_num_threads(before_);
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_, now_ = 0;
};

struct Hash {
  size_t operator()(const Problem& p) const {
    uint64_t h = static_cast<uint64_t>(p.direction) * 8 + (p.transposed ? 4 : 0) + (p.sum ? 2 : 0) + (p.bias ? 1 : 0);
    for (const int64_t n :
         {p.batch, p.time, p.length, p.in, p.out, p.taps, p.stride, p.dilation, p.groups, p.left, p.right})
      h = (h ^ static_cast<uint64_t>(n)) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    return h;
  }
};

[[noreturn]] void fail(const dnnl::error& e, const Problem& p) {
  const bool memory = e.status == dnnl_out_of_memory;
  throw Error(memory ? ErrorKind::memory : ErrorKind::usage,
              "conv1d: oneDNN refuses a convolution of " + std::to_string(p.batch) + " x " + std::to_string(p.time) +
                  " x " + std::to_string(p.in) + " to " + std::to_string(p.length) + " x " + std::to_string(p.out) +
                  ", " + std::to_string(p.taps) + " taps: " + e.what());
}

int64_t floats(size_t bytes) { return static_cast<int64_t>((bytes + 63) / 64 * 16); }

dnnl::primitive_attr attributes() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

// Version 3 makes a primitive's descriptor from its arguments, version 2 from a descriptor of the operation.
template <class Primitive, class... Rest>
typename Primitive::primitive_desc describe(const dnnl::engine& engine, const dnnl::primitive_attr& attr,
                                            const Rest&... rest) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, rest..., attr};
#else
  return {typename Primitive::desc(rest...), attr, engine};
#endif
}
template <class Primitive, class... Rest>
typename Primitive::primitive_desc describe_backward(const dnnl::engine& engine, const dnnl::primitive_attr& attr,
                                                     const dnnl::convolution_forward::primitive_desc& forward,
                                                     const Rest&... rest) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, rest..., forward, attr};
#else
  return {typename Primitive::desc(rest...), attr, engine, forward};
#endif
}

}  // namespace

// One primitive, the reorder of its weights, and memory objects whose addresses are set on each run.
class Convolution {
 public:
  Convolution(const dnnl::engine& engine, const dnnl::stream& stream, const Problem& p) : problem(p), stream_(stream) {
    using Desc = Memory_::desc;
    const auto f32 = Memory_::data_type::f32;
    const auto nwc = Memory_::format_tag::nwc;
    const Desc x({p.batch, p.in, p.time}, f32, nwc), y({p.batch, p.out, p.length}, f32, nwc),
        bias({p.out}, f32, Memory_::format_tag::x);
    const int64_t in = p.in / p.groups, out = p.out / p.groups;
    const Memory_::dims dims = p.groups > 1 ? Memory_::dims{p.groups, out, in, p.taps} : Memory_::dims{out, in, p.taps};
    Memory_::dims steps =
        p.groups > 1 ? Memory_::dims{out * p.taps * in, p.taps * in, 1, in} : Memory_::dims{p.taps * in, 1, in};
    if (p.transposed) steps = {1, p.taps * out, out};
    const Desc plain(dims, f32, steps), any(dims, f32, Memory_::format_tag::any);
    const Memory_::dims stride{p.stride}, dilation{p.dilation - 1}, left{p.left}, right{p.right};
    const auto direct = dnnl::algorithm::convolution_direct;

    dnnl::primitive_attr attr = attributes();
    if (p.sum) {
      dnnl::post_ops post;
      post.append_sum(1.0f);
      attr.set_post_ops(post);
    }
    using Forward = dnnl::convolution_forward;
    const auto kind = dnnl::prop_kind::forward_training;
    const Forward::primitive_desc hint =
        p.bias ? describe<Forward>(engine, attr, kind, direct, x, any, bias, y, stride, dilation, left, right)
               : describe<Forward>(engine, attr, kind, direct, x, any, y, stride, dilation, left, right);
    Desc inner, pad;
    switch (p.direction) {
      case Direction::forward: {
        inner = hint.weights_desc();
        pad = hint.scratchpad_desc();
        name_ = hint.impl_info_str();
        primitive_ = Forward(hint);
        bind(DNNL_ARG_SRC, x, from_);
        bind(DNNL_ARG_DST, y, to_);
        if (p.bias) bind(DNNL_ARG_BIAS, bias, bias_);
        break;
      }
      case Direction::input_gradient: {
        using Backward = dnnl::convolution_backward_data;
        const auto found =
            describe_backward<Backward>(engine, attr, hint, direct, x, any, y, stride, dilation, left, right);
        inner = found.weights_desc();
        pad = found.scratchpad_desc();
        name_ = found.impl_info_str();
        primitive_ = Backward(found);
        bind(DNNL_ARG_DIFF_DST, y, from_);
        bind(DNNL_ARG_DIFF_SRC, x, to_);
        break;
      }
      case Direction::weight_gradient: {
        using Backward = dnnl::convolution_backward_weights;
        const auto found =
            describe_backward<Backward>(engine, attr, hint, direct, x, any, y, stride, dilation, left, right);
        inner = found.diff_weights_desc();
        pad = found.scratchpad_desc();
        name_ = found.impl_info_str();
        primitive_ = Backward(found);
        bind(DNNL_ARG_SRC, x, from_);
        bind(DNNL_ARG_DIFF_DST, y, dy_);
        break;
      }
    }

    outer_ = Memory_(plain, engine, nullptr);
    inner_ = Memory_(inner, engine, nullptr);
    const bool back = p.direction == Direction::weight_gradient;
    reorders_ = back || inner != plain;
    size_t bytes = pad.get_size();
    if (reorders_) {
      inner_floats_ = floats(inner.get_size());
      dnnl::primitive_attr reorder = attributes();
      if (back) {
        dnnl::post_ops post;
        post.append_sum(1.0f);
        reorder.set_post_ops(post);
      }
      const dnnl::reorder::primitive_desc found(engine, back ? inner : plain, engine, back ? plain : inner, reorder);
      const Desc reorder_pad = found.scratchpad_desc();
      bytes = std::max(bytes, reorder_pad.get_size());
      reorder_ = dnnl::reorder(found);
      reorder_pad_ = Memory_(reorder_pad, engine, nullptr);
      reorder_arguments_ = {{DNNL_ARG_FROM, back ? inner_ : outer_},
                            {DNNL_ARG_TO, back ? outer_ : inner_},
                            {DNNL_ARG_SCRATCHPAD, reorder_pad_}};
    }
    pad_floats_ = floats(bytes);
    pad_ = Memory_(pad, engine, nullptr);
    arguments_.emplace(DNNL_ARG_SCRATCHPAD, pad_);
    arguments_.emplace(back ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, reorders_ ? inner_ : outer_);
  }

  void run(const Arguments& a) {
    set(from_, a.from);
    set(to_, a.to);
    set(dy_, a.dy);
    set(bias_, a.bias);
    float* pad = a.scratch + inner_floats_;
    pad_.set_data_handle(pad);
    if (reorders_) {
      inner_.set_data_handle(a.scratch);
      reorder_pad_.set_data_handle(pad);
    }
    if (problem.direction == Direction::weight_gradient) {
      set(outer_, a.to);
      primitive_.execute(stream_, arguments_);
      reorder_.execute(stream_, reorder_arguments_);
    } else {
      set(outer_, a.weight);
      if (reorders_) reorder_.execute(stream_, reorder_arguments_);
      primitive_.execute(stream_, arguments_);
    }
  }

  int64_t scratch() const { return inner_floats_ + pad_floats_; }
  const char* name() const { return name_.c_str(); }
  const Problem problem;

 private:
  void bind(int argument, const Memory_::desc& desc, Memory_& memory) {
    memory = Memory_(desc, stream_.get_engine(), nullptr);
    arguments_.emplace(argument, memory);
  }
  // Memory objects are handles to shared state, so the argument maps see the new address.
  static void set(Memory_& memory, const float* data) {
    if (memory.get(true) != nullptr) memory.set_data_handle(const_cast<float*>(data));
  }

  dnnl::stream stream_;
  std::string name_;
  dnnl::primitive primitive_;
  dnnl::reorder reorder_;
  bool reorders_ = false;
  Memory_ from_, to_, dy_, bias_, outer_, inner_, pad_, reorder_pad_;
  Arguments_ arguments_, reorder_arguments_;
  int64_t inner_floats_ = 0, pad_floats_ = 0;
};

namespace {

struct Convolutions : Cache {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::unordered_map<Problem, std::unique_ptr<Convolution>, Hash> made;
};

}  // namespace

Convolution& convolution(Context& ctx, const Problem& p) {
  auto& slot = ctx.impl().convolutions;
  if (!slot) slot = std::make_unique<Convolutions>();
  auto& all = static_cast<Convolutions&>(*slot);
  if (const auto found = all.made.find(p); found != all.made.end()) return *found->second;
  const Threads threads(ctx.threads());
  const ForeignAllocations foreign;
  try {
    return *all.made.emplace(p, std::make_unique<Convolution>(all.engine, all.stream, p)).first->second;
  } catch (const dnnl::error& e) {
    fail(e, p);
  }
}

int64_t scratch_size(const Convolution& c) { return c.scratch(); }
const char* implementation(const Convolution& c) { return c.name(); }

void run(Context& ctx, Convolution& c, const Arguments& a) {
  const Threads threads(ctx.threads());
  const ForeignAllocations foreign;
  try {
    c.run(a);
  } catch (const dnnl::error& e) {
    fail(e, c.problem);
  }
}

}  // namespace nacre::onednn
