#include "baselines/cudnn.h"

#include <cudnn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "baselines/library.h"
#include "ceilings_cuda.h"
#include "runtime/runtime.h"

namespace nacre::bench {
namespace {

#define NACRE_CUDNN(name) decltype(&::name) name = library.function<decltype(::name)>(#name)
struct Functions {
  Library library{"cuDNN", {"libcudnn.so.9"}};
  NACRE_CUDNN(cudnnCreate);
  NACRE_CUDNN(cudnnDestroy);
  NACRE_CUDNN(cudnnSetStream);
  NACRE_CUDNN(cudnnGetErrorString);
  NACRE_CUDNN(cudnnGetLastErrorString);
  NACRE_CUDNN(cudnnBackendCreateDescriptor);
  NACRE_CUDNN(cudnnBackendDestroyDescriptor);
  NACRE_CUDNN(cudnnBackendSetAttribute);
  NACRE_CUDNN(cudnnBackendGetAttribute);
  NACRE_CUDNN(cudnnBackendFinalize);
  NACRE_CUDNN(cudnnBackendExecute);
};
#undef NACRE_CUDNN
const Functions& functions() {
  static const Functions f;
  return f;
}

void check(cudnnStatus_t s, const char* what) {
  if (s == CUDNN_STATUS_SUCCESS) return;
  char reason[512] = {};
  functions().cudnnGetLastErrorString(reason, sizeof(reason));
  throw Error(ErrorKind::device, std::string("cuDNN: ") + what + ": " + functions().cudnnGetErrorString(s) +
                                     (reason[0] != 0 ? std::string(", ") + reason : ""));
}

class Descriptor {
 public:
  Descriptor(cudnnBackendDescriptorType_t type, const char* what) : what_(what) {
    check(functions().cudnnBackendCreateDescriptor(type, &descriptor_), what);
  }
  ~Descriptor() {
    if (descriptor_ != nullptr) (void)functions().cudnnBackendDestroyDescriptor(descriptor_);
  }
  Descriptor(Descriptor&& other) noexcept
      : what_(other.what_), descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(what_, other.what_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }

  template <class T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    set(name, type, std::array<T, 1>{value});
  }
  template <class T, size_t n>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const std::array<T, n>& values) {
    check(functions().cudnnBackendSetAttribute(descriptor_, name, type, int64_t{n}, values.data()), what_);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& other) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, other.descriptor_);
  }
  void finalize() { check(functions().cudnnBackendFinalize(descriptor_), what_); }
  /// Reads up to `most` values into `to`. Returns their number.
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most, void* to) const {
    int64_t count = 0;
    check(functions().cudnnBackendGetAttribute(descriptor_, name, type, most, &count, to), what_);
    return count;
  }
  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  const char* what_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// ---- the operation
// --------------------------------------------------------------------------------------------------------

enum : int64_t { x_id = 1, weight_id = 2, y_id = 3 };

/// A tensor [n, c, 1, w]. Its memory layout is [n][w][c] (channels last) or [n][c][w].
Descriptor tensor(int64_t id, cudnnDataType_t type, int64_t n, int64_t w, int64_t c, bool channels_last) {
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR, "tensor");
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
  d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t{16});
  d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::array<int64_t, 4>{n, c, 1, w});
  d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64,
        channels_last ? std::array<int64_t, 4>{w * c, 1, w * c, c} : std::array<int64_t, 4>{c * w, w, w, 1});
  d.finalize();
  return d;
}

/// The operation and all descriptors that it refers to.
struct Operation {
  Descriptor x, weight, y, convolution, operation;
};

Operation operation(const CudnnConv1d::Problem& p) {
  const cudnnDataType_t type = p.arithmetic == "bf16" ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
  const Conv1dGeometry& g = p.geometry;
  const Shape &x = p.x_shape, &w = p.weight_shape, &y = p.y_shape;  // weights are [out, taps, 1, in]
  Descriptor convolution(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, "convolution");
  convolution.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  convolution.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, CUDNN_CROSS_CORRELATION);
  convolution.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, int64_t{2});
  convolution.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, std::array<int64_t, 2>{1, g.dilation});
  convolution.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, std::array<int64_t, 2>{1, g.stride});
  convolution.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, std::array<int64_t, 2>{0, g.left});
  convolution.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, std::array<int64_t, 2>{0, g.right});
  convolution.finalize();

  struct Names {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t convolution, x, weight, y, alpha, beta;
  };
  static constexpr Names names[] = {
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA}};
  const Names& n = names[static_cast<size_t>(p.direction)];
  Operation o{.x = tensor(x_id, type, x.batch, x.time, x.channels, p.channels_last),
              .weight = tensor(weight_id, type, w.batch, w.time, w.channels, p.channels_last),
              .y = tensor(y_id, type, y.batch, y.time, y.channels, p.channels_last),
              .convolution = std::move(convolution),
              .operation = Descriptor(n.type, "operation")};
  o.operation.set(n.convolution, o.convolution);
  o.operation.set(n.x, o.x);
  o.operation.set(n.weight, o.weight);
  o.operation.set(n.y, o.y);
  o.operation.set(n.alpha, CUDNN_TYPE_FLOAT, 1.0f);
  o.operation.set(n.beta, CUDNN_TYPE_FLOAT, 0.0f);
  o.operation.finalize();
  return o;
}

Descriptor graph_of(cudnnHandle_t handle, const Operation& o) {
  Descriptor d(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "operation graph");
  d.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  d.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, o.operation);
  d.finalize();
  return d;
}

// ---- plans
// ----------------------------------------------------------------------------------------------------------------

/// Engine configurations in cuDNN's order, the best guess first.
std::vector<Descriptor> configurations(const Descriptor& graph, cudnnBackendHeurMode_t mode, int64_t most) {
  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "heuristics");
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  heuristics.finalize();
  const int64_t count =
      std::min(most, heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr));
  std::vector<Descriptor> all;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i) {
    all.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "engine configuration");
    raw.push_back(all.back().get());
  }
  if (count == 0) return all;
  const int64_t given = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, raw.data());
  all.erase(all.begin() + std::min(given, count), all.end());
  return all;
}

/// Whether the engine multiplies in the arithmetic of the case.
bool allowed(const Descriptor& configuration, std::string_view arithmetic) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine");
  cudnnBackendDescriptor_t raw = engine.get();
  (void)configuration.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT] = {};
  const int64_t count =
      engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT, notes);
  for (int64_t i = 0; i < count; ++i) {
    if (arithmetic == "bf16") continue;
    if (notes[i] == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) return false;
    if (notes[i] == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS) return false;
    if (notes[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE && arithmetic == "fp32") return false;
  }
  return true;
}

struct Plan {
  Descriptor configuration, plan;
  int64_t workspace = 0;
};
constexpr int64_t most_workspace = int64_t{4} << 30;
constexpr size_t most_plans = 16, few_plans = 4;  // frameworks try ten; fallback engines only below few_plans

/// The plans that can be built, at most `most_plans`. `why` gets the reason of the last one that cannot.
std::vector<Plan> plans_for(cudnnHandle_t handle, const Descriptor& graph, std::string_view arithmetic,
                            std::string* why) {
  std::vector<Plan> plans;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    if (mode == CUDNN_HEUR_MODE_FALLBACK && plans.size() >= few_plans) break;
    std::vector<Descriptor> found;
    try {
      found = configurations(graph, mode, 64);
    } catch (const Error& e) {
      *why = e.what();  // heuristics that do not support the problem report it as an error
    }
    for (Descriptor& configuration : found) {
      if (plans.size() == most_plans) break;
      try {
        if (!allowed(configuration, arithmetic)) continue;
        Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "plan");
        plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
        plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
        plan.finalize();
        int64_t workspace = 0;
        (void)plan.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace);
        if (workspace <= most_workspace) plans.push_back({std::move(configuration), std::move(plan), workspace});
      } catch (const Error& e) {
        *why = e.what();
      }
    }
  }
  return plans;
}

/// Assigns a memory address to every tensor.
Descriptor variant_pack(const CudnnConv1d::Problem& p, void* workspace) {
  Descriptor d(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "variant pack");
  d.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::array<int64_t, 3>{x_id, weight_id, y_id});
  d.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::array<void*, 3>{p.x, p.weight, p.y});
  d.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  d.finalize();
  return d;
}

void expect_cudnn_can(const CudnnConv1d::Problem& p) {
  if (p.geometry.padding != Padding::zero || p.geometry.groups != 1)
    throw Skip("cuDNN: this baseline pads with zeros and has no groups");
}

}  // namespace

struct CudnnConv1d::Impl {
  struct Handle {
    cudnnHandle_t handle = nullptr;
    ~Handle() {
      if (handle != nullptr) (void)functions().cudnnDestroy(handle);
    }
  } handle;  // first member: destroyed after the descriptors below
  Memory workspace;
  std::vector<Descriptor> kept;  // the operation and its graph
  std::vector<Plan> plans;
  std::vector<Descriptor> pack;
  const Plan* best = nullptr;
  int measured = 0;

  void run(const Plan& p) const {
    check(functions().cudnnBackendExecute(handle.handle, p.plan.get(), pack.front().get()), "execute");
  }
};

CudnnConv1d::CudnnConv1d(Context& ctx, const Problem& p) : impl_(std::make_unique<Impl>()) {
  expect_cudnn_can(p);
  Impl& i = *impl_;
  const Functions& f = functions();
  check(f.cudnnCreate(&i.handle.handle), "cudnnCreate");
  check(f.cudnnSetStream(i.handle.handle, static_cast<cudaStream_t>(cuda::runtime(ctx).stream())), "cudnnSetStream");
  Operation o = operation(p);
  i.kept.push_back(graph_of(i.handle.handle, o));
  for (Descriptor* d : {&o.operation, &o.convolution, &o.x, &o.weight, &o.y}) i.kept.push_back(std::move(*d));
  std::string why = "no engine of this arithmetic";
  i.plans = plans_for(i.handle.handle, i.kept.front(), p.arithmetic, &why);
  int64_t workspace = 0;
  for (const Plan& plan : i.plans) workspace = std::max(workspace, plan.workspace);
  i.workspace = Memory(ctx, static_cast<size_t>(std::max<int64_t>(workspace, 256)));
  i.pack.push_back(variant_pack(p, i.workspace.data()));
  double seconds = HUGE_VAL;
  for (const Plan& plan : i.plans) {
    try {
      // One run comes first, because a fallback engine may be slower by orders of magnitude.
      i.run(plan);
      if (p.first_plan) {
        ctx.synchronize();
        i.best = &plan;
        break;
      }
      cuda::Event start, end;
      start.record(ctx);
      i.run(plan);
      end.record(ctx);
      if (end.seconds_since(start) > 3 * seconds + 1e-4) continue;
      const double one = best_time(ctx, 4, 3, [&] { i.run(plan); });
      ++i.measured;
      if (one < seconds) seconds = one, i.best = &plan;
    } catch (const Error& e) {
      why = e.what();  // some engines fail only when they run, or cannot be captured
    }
  }
  if (i.best == nullptr) throw Skip("cuDNN has no plan for this: " + why);
}
CudnnConv1d::~CudnnConv1d() = default;
void CudnnConv1d::run() { impl_->run(*impl_->best); }
int CudnnConv1d::plans() const { return impl_->measured; }

}  // namespace nacre::bench
