// One kernel, and the tensors that it is started on without being looked at one by one.
//
// What is not as in an earlier call is declined, and `KernelCall` looks at it: nothing here decides that
// something is right for the first time, and nothing here reports an error.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/python_variable.h>

namespace ksearch {

constexpr size_t kMostLooks = 4;     // with gradients on, in inference mode, a parameter
constexpr size_t kMostPointers = 16; // a kernel's tensors
constexpr int kCooperative = 2;      // CU_LAUNCH_ATTRIBUTE_COOPERATIVE

// CUlaunchAttribute and CUlaunchConfig of cuda.h (CUDA 12 and 13): no header of CUDA's is needed to compile this.
struct Attribute {
  int kind = kCooperative;
  int unused = 0;
  std::array<int, 16> value{1};
};

struct LaunchConfig {
  std::array<unsigned, 3> grid{1, 1, 1};
  std::array<unsigned, 3> block{1, 1, 1};
  unsigned smem_bytes = 0;
  void* stream = nullptr;
  Attribute* attributes = nullptr;
  unsigned attribute_count = 0;
};

using LaunchKernel = int (*)(const LaunchConfig*, void* function, void** parameters, void** extra);

struct Step {
  void* function;
  unsigned grid, block, smem_bytes;
  bool cooperative;
};

// All that decides how PyTorch treats a tensor, but its values and its place in memory.
struct TensorLook {
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;
  c10::Device device;
  c10::DispatchKeySet keys; // with the modes and transforms that are on: negation, vmap, autocast, inference
  bool requires_grad;

  TensorLook(const at::Tensor& tensor, c10::DispatchKeySet applied)
      : sizes(tensor.sizes().vec()),
        strides(tensor.strides().vec()),
        dtype(tensor.scalar_type()),
        device(tensor.device()),
        keys(applied),
        requires_grad(tensor.requires_grad()) {}

  bool fits(const at::Tensor& tensor, c10::DispatchKeySet applied) const {
    return keys == applied && dtype == tensor.scalar_type() && device == tensor.device() &&
        tensor.sizes() == sizes && tensor.strides() == strides && requires_grad == tensor.requires_grad();
  }
};

struct Look {
  std::vector<TensorLook> tensors;
  bool without_grad; // it holds only while no gradients are taken
};

using Tensors = std::array<const at::Tensor*, kMostPointers>;
using Pointers = std::array<void*, kMostPointers>;

enum class Start {
  kDone,
  kDeclined,
  kRaised // a Python error is set
};

class Kernel {
 public:
  size_t inputs;
  std::vector<std::vector<int64_t>> out_shapes;
  std::vector<at::ScalarType> out_dtypes;
  int index; // of the CUDA device; -1 is the CPU
  int64_t rows;
  uintptr_t alignment;
  std::vector<uint64_t> bytes;   // of each tensor, the inputs first
  std::vector<bool> replaceable; // inputs that an output may overwrite
  void* start;                   // cuLaunchKernelEx, or the kernel itself on a CPU
  std::vector<Step> steps;       // on a GPU
  int threads;                   // on a CPU
  PyObject* current_stream = nullptr;
  uint64_t starts = 0;
  std::vector<Look> looks;

  size_t outputs() const { return out_shapes.size(); }

  void learn(const Tensors& given, size_t count) {
    Look look{{}, false};
    const auto modes = c10::impl::tls_local_dispatch_key_set();
    for (size_t i = 0; i < count; ++i) {
      look.tensors.emplace_back(*given[i], applied(*given[i], modes));
      look.without_grad |= given[i]->requires_grad();
    }
    looks.insert(looks.begin(), std::move(look));
    if (looks.size() > kMostLooks) looks.pop_back();
  }

  // The results of these inputs, which fit: in `made`, or, where there are as many tensors as with outputs, in those.
  // With the GIL, which is given up while the kernel is started, as the driver may wait for room in its queue.
  Start launch(Tensors& given, size_t count, std::vector<at::Tensor>& made) {
    const bool has_out = count != inputs;
    if (count != inputs + (has_out ? outputs() : 0) || !knows(given, count)) return Start::kDeclined;
    for (size_t i = 0; i < count; ++i) {
      if (has_tangent(*given[i])) return Start::kDeclined;
    }
    void* stream = nullptr;
    if (index >= 0) {
      const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
      if (cuda.getDevice().index() != index) return Start::kDeclined;
      PyObject* number = PyLong_FromLong(index);
      PyObject* handle = PyObject_CallOneArg(current_stream, number);
      Py_DECREF(number);
      if (handle == nullptr) return Start::kRaised;
      stream = reinterpret_cast<void*>(static_cast<uintptr_t>(PyLong_AsUnsignedLongLong(handle)));
      Py_DECREF(handle);
    }
    Pointers pointers;
    try {
      if (!has_out) {
        made.reserve(outputs());
        for (size_t i = 0; i < outputs(); ++i) {
          made.push_back(empty(i));
          given[count++] = &made.back();
        }
      }
      for (size_t i = 0; i < count; ++i) pointers[i] = given[i]->data_ptr();
    } catch (const std::exception&) { // no memory for the result, or a tensor without memory
      return Start::kDeclined;
    }
    if (misplaced(pointers)) return Start::kDeclined;
    if (has_out) { // autograd must see that they were written
      for (size_t i = inputs; i < count; ++i) {
        if (!given[i]->is_inference()) given[i]->unsafeGetTensorImpl()->bump_version();
      }
    }
    bool started = false;
    Py_BEGIN_ALLOW_THREADS
    started = run(pointers, stream);
    Py_END_ALLOW_THREADS
    if (!started) return Start::kDeclined; // it is started again from Python, which can say why that fails
    ++starts;
    return Start::kDone;
  }

 private:
  bool knows(const Tensors& given, size_t count) const {
    const auto modes = c10::impl::tls_local_dispatch_key_set();
    for (const Look& look : looks) {
      if (look.tensors.size() != count || (look.without_grad && c10::GradMode::is_enabled())) continue;
      bool same = true;
      for (size_t i = 0; same && i < count; ++i) same = look.tensors[i].fits(*given[i], applied(*given[i], modes));
      if (same) return true;
    }
    return false;
  }

  // Memory for an output, on the current device: from the backend itself, for no mode is on that inputs that fit
  // would not tell of. That spares 0.1 us of the 0.5 that at::empty takes.
  at::Tensor empty(size_t number) const {
    const bool on_cpu = index < 0;
    const auto device = on_cpu ? c10::Device(c10::DeviceType::CPU)
                               : c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    return at::_ops::empty_memory_format::redispatch(
        c10::DispatchKeySet(on_cpu ? c10::DispatchKey::CPU : c10::DispatchKey::CUDA),
        c10::fromIntArrayRefSlow(out_shapes[number]), out_dtypes[number], at::kStrided, device, false, std::nullopt);
  }

  bool misplaced(const Pointers& pointers) const {
    const size_t count = inputs + outputs();
    for (size_t k = 0; k < count; ++k) {
      const auto at = reinterpret_cast<uintptr_t>(pointers[k]);
      if (at == 0 || at % alignment != 0) return true;
      if (k < inputs) continue;
      for (size_t j = 0; j < k; ++j) {
        const auto other = reinterpret_cast<uintptr_t>(pointers[j]);
        if (j < inputs && replaceable[j] && other == at) continue;
        if (other < at + bytes[k] && at < other + bytes[j]) return true;
      }
    }
    return false;
  }

  // Whether it was started.
  bool run(Pointers& pointers, void* stream) const {
    const size_t count = inputs + outputs();
    if (steps.empty()) {
      call_host(pointers, count, std::make_index_sequence<kMostPointers>());
      return true;
    }
    int64_t argument = rows;
    std::array<void*, kMostPointers + 1> parameters;
    for (size_t k = 0; k < count; ++k) parameters[k] = &pointers[k];
    parameters[count] = &argument;
    for (const Step& step : steps) {
      Attribute attribute;
      LaunchConfig config;
      config.grid[0] = step.grid;
      config.block[0] = step.block;
      config.smem_bytes = step.smem_bytes;
      config.stream = stream;
      if (step.cooperative) {
        config.attributes = &attribute;
        config.attribute_count = 1;
      }
      if (reinterpret_cast<LaunchKernel>(start)(&config, step.function, parameters.data(), nullptr) != 0) return false;
    }
    return true;
  }

  static c10::DispatchKeySet applied(const at::Tensor& tensor, const c10::impl::LocalDispatchKeySet& modes) {
    return (tensor.key_set() | modes.included_) - modes.excluded_;
  }

  static bool has_tangent(const at::Tensor& tensor) {
    return tensor.unsafeGetTensorImpl()->autograd_meta() != nullptr && tensor._fw_grad(0).defined();
  }

  // A function of `count` pointers, the rows and the threads.
  template <size_t... Places>
  void call_host(const Pointers& pointers, size_t count, std::index_sequence<Places...>) const {
    (void)((count == Places + 1 && (call_with(pointers, std::make_index_sequence<Places + 1>()), true)) || ...);
  }

  template <size_t... Places>
  void call_with(const Pointers& pointers, std::index_sequence<Places...>) const {
    using Entry = void (*)(decltype((void)Places, static_cast<void*>(nullptr))..., int64_t, int32_t);
    reinterpret_cast<Entry>(start)(pointers[Places]..., rows, threads);
  }
};

} // namespace ksearch
