// Calls a kernel without Python in between: are the tensors like those of an earlier call, then start it.
//
// `ksearch launcher` compiles this file; `ksearch.runtime.launcher` loads it, and says what the arguments are.
// What is not as before is declined, and `KernelCall` looks at it: nothing here decides that something is
// right for the first time, and nothing here reports an error.

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>

namespace {

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

  // Whether it was started; without the GIL, as the driver may wait for room in its queue.
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

 private:
  static c10::DispatchKeySet applied(const at::Tensor& tensor, const c10::impl::LocalDispatchKeySet& modes) {
    return (tensor.key_set() | modes.included_) - modes.excluded_;
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

struct Launcher {
  PyObject_HEAD
  Kernel* kernel;
  vectorcallfunc vectorcall;
};

PyObject* declined = nullptr;

PyObject* decline() {
  Py_INCREF(declined);
  return declined;
}

// Whether the objects are tensors and no subclass of them; in `found`, which has room for them.
bool unpack(PyObject* const* objects, size_t count, Tensors& found, size_t place) {
  for (size_t i = 0; i < count; ++i) {
    if (!THPVariable_CheckExact(objects[i])) return false;
    found[place + i] = &THPVariable_Unpack(objects[i]);
  }
  return true;
}

bool has_tangent(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->autograd_meta() != nullptr && tensor._fw_grad(0).defined();
}

PyObject* start(Kernel& kernel, PyObject* tensors, PyObject* out) {
  if (!PyTuple_CheckExact(tensors) || static_cast<size_t>(PyTuple_GET_SIZE(tensors)) != kernel.inputs) return decline();
  Tensors given;
  if (!unpack(PySequence_Fast_ITEMS(tensors), kernel.inputs, given, 0)) return decline();
  size_t count = kernel.inputs;
  const bool has_out = out != Py_None;
  if (has_out) {
    PyObject* const* results = &out;
    size_t found = 1;
    if (PyTuple_CheckExact(out)) {
      results = PySequence_Fast_ITEMS(out);
      found = PyTuple_GET_SIZE(out);
    }
    if (found != kernel.outputs() || !unpack(results, found, given, count)) return decline();
    count += found;
  }
  if (!kernel.knows(given, count)) return decline();
  for (size_t i = 0; i < count; ++i) {
    if (has_tangent(*given[i])) return decline();
  }
  void* stream = nullptr;
  if (kernel.index >= 0) {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    if (cuda.getDevice().index() != kernel.index) return decline();
    PyObject* number = PyLong_FromLong(kernel.index);
    PyObject* handle = PyObject_CallOneArg(kernel.current_stream, number);
    Py_DECREF(number);
    if (handle == nullptr) return nullptr;
    stream = reinterpret_cast<void*>(static_cast<uintptr_t>(PyLong_AsUnsignedLongLong(handle)));
    Py_DECREF(handle);
  }
  Pointers pointers;
  std::vector<at::Tensor> made;
  try {
    if (!has_out) {
      const auto device = kernel.index < 0 ? c10::Device(c10::DeviceType::CPU)
                                           : c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(kernel.index));
      made.reserve(kernel.outputs());
      for (size_t i = 0; i < kernel.outputs(); ++i) {
        made.push_back(at::empty(kernel.out_shapes[i], at::TensorOptions().dtype(kernel.out_dtypes[i]).device(device)));
        given[count++] = &made.back();
      }
    }
    for (size_t i = 0; i < count; ++i) pointers[i] = given[i]->data_ptr();
  } catch (const std::exception&) { // no memory for the result, or a tensor without memory
    return decline();
  }
  if (kernel.misplaced(pointers)) return decline();
  if (has_out) { // autograd must see that they were written
    for (size_t i = kernel.inputs; i < count; ++i) {
      if (!given[i]->is_inference()) given[i]->unsafeGetTensorImpl()->bump_version();
    }
  }
  bool started = false;
  Py_BEGIN_ALLOW_THREADS
  started = kernel.run(pointers, stream);
  Py_END_ALLOW_THREADS
  if (!started) return decline(); // it is started again from Python, which can say why that fails
  ++kernel.starts;
  if (has_out) {
    Py_INCREF(out);
    return out;
  }
  if (made.size() == 1) return THPVariable_Wrap(std::move(made[0]));
  PyObject* results = PyTuple_New(static_cast<Py_ssize_t>(made.size()));
  for (size_t i = 0; results != nullptr && i < made.size(); ++i) {
    PyTuple_SET_ITEM(results, static_cast<Py_ssize_t>(i), THPVariable_Wrap(std::move(made[i])));
  }
  return results;
}

// launcher(tensors, out)
PyObject* call(PyObject* self, PyObject* const* arguments, size_t flagged, PyObject* names) {
  if (PyVectorcall_NARGS(flagged) != 2 || names != nullptr) {
    PyErr_SetString(PyExc_TypeError, "a launcher takes a tuple of tensors and `out`");
    return nullptr;
  }
  return start(*reinterpret_cast<Launcher*>(self)->kernel, arguments[0], arguments[1]);
}

// launcher.learn(given): tensors that fit, the inputs and what `out` holds
PyObject* learn(PyObject* self, PyObject* given) {
  Tensors found;
  const size_t count = PyTuple_CheckExact(given) ? PyTuple_GET_SIZE(given) : kMostPointers + 1;
  if (count > kMostPointers || !unpack(PySequence_Fast_ITEMS(given), count, found, 0)) {
    PyErr_SetString(PyExc_TypeError, "learn takes a tuple of tensors");
    return nullptr;
  }
  reinterpret_cast<Launcher*>(self)->kernel->learn(found, count);
  Py_RETURN_NONE;
}

template <typename T>
bool read(PyObject* numbers, std::vector<T>& values) {
  PyObject* fast = PySequence_Fast(numbers, "a sequence of numbers is wanted");
  if (fast == nullptr) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); ++i) {
    values.push_back(static_cast<T>(PyLong_AsLongLong(PySequence_Fast_GET_ITEM(fast, i))));
  }
  Py_DECREF(fast);
  return PyErr_Occurred() == nullptr;
}

bool read_shapes(PyObject* shapes, std::vector<std::vector<int64_t>>& found) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(shapes); ++i) {
    found.emplace_back();
    if (!read(PyTuple_GetItem(shapes, i), found.back())) return false;
  }
  return PyErr_Occurred() == nullptr;
}

bool read_dtypes(PyObject* dtypes, std::vector<at::ScalarType>& found) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(dtypes); ++i) {
    PyObject* dtype = PyTuple_GetItem(dtypes, i);
    if (!THPDtype_Check(dtype)) {
      PyErr_SetString(PyExc_TypeError, "out_dtypes holds what is no dtype");
      return false;
    }
    found.push_back(reinterpret_cast<THPDtype*>(dtype)->scalar_type);
  }
  return true;
}

bool read_steps(PyObject* steps, std::vector<Step>& found) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(steps); ++i) {
    Step step{};
    unsigned long long function = 0;
    int cooperative = 0;
    if (!PyArg_ParseTuple(
            PyTuple_GetItem(steps, i), "KIIIp", &function, &step.grid, &step.block, &step.smem_bytes, &cooperative)) {
      return false;
    }
    step.function = reinterpret_cast<void*>(function);
    step.cooperative = cooperative != 0;
    found.push_back(step);
  }
  return PyErr_Occurred() == nullptr;
}

PyObject* create(PyTypeObject* type, PyObject* arguments, PyObject* named) {
  static const char* names[] = {"inputs", "out_shapes", "out_dtypes", "index", "rows", "alignment", "bytes", "replaceable",
                                "start", "steps", "threads", "current_stream", nullptr};
  Py_ssize_t inputs = 0;
  PyObject *shapes = nullptr, *dtypes = nullptr, *bytes = nullptr, *replaceable = nullptr, *steps = nullptr;
  PyObject* current_stream = nullptr;
  int index = -1, threads = 0;
  long long rows = 0;
  unsigned long long alignment = 1, entry = 0;
  if (!PyArg_ParseTupleAndKeywords(
          arguments, named, "$nO!O!iLKO!O!KO!iO", const_cast<char**>(names), &inputs, &PyTuple_Type, &shapes,
          &PyTuple_Type, &dtypes, &index, &rows, &alignment, &PyTuple_Type, &bytes, &PyTuple_Type, &replaceable, &entry,
          &PyTuple_Type, &steps, &threads, &current_stream)) {
    return nullptr;
  }
  auto kernel = std::make_unique<Kernel>();
  kernel->inputs = static_cast<size_t>(inputs);
  kernel->index = index;
  kernel->rows = rows;
  kernel->alignment = std::max<uintptr_t>(1, alignment);
  kernel->start = reinterpret_cast<void*>(entry);
  kernel->threads = threads;
  if (!read_shapes(shapes, kernel->out_shapes) || !read_dtypes(dtypes, kernel->out_dtypes) || !read(bytes, kernel->bytes) || !read(replaceable, kernel->replaceable) ||
      !read_steps(steps, kernel->steps)) {
    return nullptr;
  }
  const size_t count = kernel->inputs + kernel->outputs();
  if (count > kMostPointers || kernel->out_dtypes.size() != kernel->outputs() || kernel->bytes.size() != count || kernel->replaceable.size() != kernel->inputs) {
    PyErr_SetString(PyExc_ValueError, "these are not a kernel's tensors");
    return nullptr;
  }
  auto* self = reinterpret_cast<Launcher*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  Py_INCREF(current_stream);
  kernel->current_stream = current_stream;
  self->kernel = kernel.release();
  self->vectorcall = call;
  return reinterpret_cast<PyObject*>(self);
}

void destroy(PyObject* self) {
  auto* kernel = reinterpret_cast<Launcher*>(self)->kernel;
  Py_XDECREF(kernel->current_stream);
  delete kernel;
  Py_TYPE(self)->tp_free(self);
}

PyObject* get_starts(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(reinterpret_cast<Launcher*>(self)->kernel->starts);
}

// ---- many kernels of one op, by the first tensor -------------------------------------------------------------

struct Key {
  std::vector<int64_t> sizes;
  at::ScalarType dtype;
  c10::Device device;

  explicit Key(const at::Tensor& tensor)
      : sizes(tensor.sizes().vec()), dtype(tensor.scalar_type()), device(tensor.device()) {}

  bool operator<(const Key& other) const {
    const auto order = [](const Key& key) { return std::make_tuple(key.dtype, key.device.type(), key.device.index()); };
    const auto mine = order(*this), theirs = order(other);
    return mine == theirs ? sizes < other.sizes : mine < theirs;
  }
};

struct Router {
  PyObject_HEAD
  std::map<Key, PyObject*>* launchers;
  vectorcallfunc vectorcall;
};

bool may_be_cast(const at::Tensor& tensor) {
  const auto modes = c10::impl::tls_local_dispatch_key_set();
  return ((tensor.key_set() | modes.included_) - modes.excluded_).has_any(c10::autocast_dispatch_keyset);
}

// router(tensors, out)
PyObject* route(PyObject* self, PyObject* const* arguments, size_t flagged, PyObject* names) {
  if (PyVectorcall_NARGS(flagged) != 2 || names != nullptr || !PyTuple_CheckExact(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "a router takes a tuple of tensors and `out`");
    return nullptr;
  }
  Tensors first;
  if (PyTuple_GET_SIZE(arguments[0]) == 0 || !unpack(PySequence_Fast_ITEMS(arguments[0]), 1, first, 0)) return decline();
  const at::Tensor& tensor = *first[0];
  if (tensor.layout() != at::kStrided || may_be_cast(tensor)) return decline(); // handles keep the dtype
  const auto& launchers = *reinterpret_cast<Router*>(self)->launchers;
  const auto found = launchers.find(Key(tensor));
  if (found == launchers.end()) return decline();
  PyObject* launcher = found->second;
  Py_INCREF(launcher); // another thread may replace it while the kernel runs
  PyObject* result = start(*reinterpret_cast<Launcher*>(launcher)->kernel, arguments[0], arguments[1]);
  Py_DECREF(launcher);
  return result;
}

PyObject* create_router(PyTypeObject* type, PyObject*, PyObject*) {
  auto* self = reinterpret_cast<Router*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  self->launchers = new std::map<Key, PyObject*>();
  self->vectorcall = route;
  return reinterpret_cast<PyObject*>(self);
}

void destroy_router(PyObject* self) {
  auto* launchers = reinterpret_cast<Router*>(self)->launchers;
  for (auto& [key, launcher] : *launchers) Py_DECREF(launcher);
  delete launchers;
  Py_TYPE(self)->tp_free(self);
}

PyObject* add(PyObject* self, PyObject* arguments);

PyMethodDef router_methods[] = {
    {"add", add, METH_VARARGS, "(tensor, launcher): calls whose first tensor is of its shape, dtype and device."},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef methods[] = {
    {"learn", learn, METH_O, "Tensors that fit: calls of such as these are answered from now on."},
    {nullptr, nullptr, 0, nullptr}};
PyGetSetDef properties[] = {
    {"starts", get_starts, nullptr, "Calls that were answered.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
PyTypeObject router_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

PyObject* add(PyObject* self, PyObject* arguments) {
  PyObject *tensor = nullptr, *launcher = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO!", &tensor, &type, &launcher)) return nullptr;
  Tensors first;
  if (!unpack(&tensor, 1, first, 0)) {
    PyErr_SetString(PyExc_TypeError, "a router is told of a plain tensor");
    return nullptr;
  }
  auto& place = (*reinterpret_cast<Router*>(self)->launchers)[Key(*first[0])];
  Py_INCREF(launcher);
  Py_XDECREF(std::exchange(place, launcher));
  Py_RETURN_NONE;
}

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "ksearch_launcher", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit_ksearch_launcher() {
  type.tp_name = "ksearch_launcher.Launcher";
  type.tp_basicsize = sizeof(Launcher);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  type.tp_new = create;
  type.tp_dealloc = destroy;
  type.tp_call = PyVectorcall_Call;
  type.tp_vectorcall_offset = offsetof(Launcher, vectorcall);
  type.tp_methods = methods;
  type.tp_getset = properties;
  router_type.tp_name = "ksearch_launcher.Router";
  router_type.tp_basicsize = sizeof(Router);
  router_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  router_type.tp_new = create_router;
  router_type.tp_dealloc = destroy_router;
  router_type.tp_call = PyVectorcall_Call;
  router_type.tp_vectorcall_offset = offsetof(Router, vectorcall);
  router_type.tp_methods = router_methods;
  if (PyType_Ready(&type) < 0 || PyType_Ready(&router_type) < 0) return nullptr;
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  declined = PyUnicode_InternFromString("it looks new");
  PyModule_AddObjectRef(module, "Launcher", reinterpret_cast<PyObject*>(&type));
  PyModule_AddObjectRef(module, "Router", reinterpret_cast<PyObject*>(&router_type));
  return module;
}
