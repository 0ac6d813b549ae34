// ksearch_launcher.Operator: one op's kernels in PyTorch's dispatcher, for calls that come from graphs, too.
//
// It is what the dispatcher calls for CPUs and GPUs, and for their gradients. A call like one that was met before
// is launched here; all else goes to the Python function that would have been called without it. Its caller stands
// before the dispatcher, for calls from Python, such as those of Inductor's code: that spares 0.7 us of 2.4.

#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/record_function.h>
#include <pybind11/pybind11.h>

#include "table.h"

namespace ksearch {

struct Gil {
  PyGILState_STATE state = PyGILState_Ensure();
  Gil() = default;
  Gil(const Gil&) = delete;
  ~Gil() { PyGILState_Release(state); }
};

// 0 and -0 are not, a NaN is.
inline bool is_same(double one, double other) { return std::memcmp(&one, &other, sizeof(double)) == 0; }

inline bool is_same(PyObject* one, PyObject* other) {
  if (one == other) return true;
  if (Py_TYPE(one) != Py_TYPE(other)) return false;
  if (PyFloat_CheckExact(one)) return is_same(PyFloat_AS_DOUBLE(one), PyFloat_AS_DOUBLE(other));
  const int same = PyObject_RichCompareBool(one, other, Py_EQ);
  if (same < 0) PyErr_Clear();
  return same == 1;
}

// Whether two values of one option are the same. None is one, too: a default that schemas cannot write.
inline bool is_same(const c10::IValue& one, const c10::IValue& other) {
  if (one.isBool() && other.isBool()) return one.toBool() == other.toBool();
  if (one.isInt() && other.isInt()) return one.toInt() == other.toInt();
  if (one.isDouble() && other.isDouble()) return is_same(one.toDouble(), other.toDouble());
  if (one.isString() && other.isString()) return one.toStringRef() == other.toStringRef();
  return one.isNone() && other.isNone();
}

// A new reference; null where a Python error is set.
inline PyObject* to_python(const c10::IValue& value) {
  if (value.isTensor()) return THPVariable_Wrap(value.toTensor());
  if (value.isBool()) return PyBool_FromLong(value.toBool());
  if (value.isInt()) return PyLong_FromLongLong(value.toInt());
  if (value.isDouble()) return PyFloat_FromDouble(value.toDouble());
  if (value.isString()) return PyUnicode_FromStringAndSize(value.toStringRef().data(), static_cast<Py_ssize_t>(value.toStringRef().size()));
  if (!value.isNone()) {
    PyErr_SetString(PyExc_TypeError, "an op takes tensors, numbers and texts");
    return nullptr;
  }
  Py_RETURN_NONE;
}

// Nothing where a Python error is set.
inline std::optional<c10::IValue> from_python(PyObject* object, const c10::Type& type) {
  if (object == Py_None) return c10::IValue();
  if (const auto* inner = type.castRaw<c10::OptionalType>()) return from_python(object, *inner->getElementType());
  c10::IValue value;
  switch (type.kind()) {
    case c10::TypeKind::BoolType: value = PyObject_IsTrue(object) == 1; break;
    case c10::TypeKind::IntType: value = static_cast<int64_t>(PyLong_AsLongLong(object)); break;
    case c10::TypeKind::FloatType: value = PyFloat_AsDouble(object); break;
    default: {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_AsUTF8AndSize(object, &size);
      if (text != nullptr) value = std::string(text, static_cast<size_t>(size));
    }
  }
  if (PyErr_Occurred() != nullptr) return std::nullopt;
  return value;
}

// The kernels of one op, by its options, by which of its tensors are there, and by the first of these. Only with
// the GIL.
class Kernels {
 public:
  explicit Kernels(const c10::FunctionSchema& schema) {
    for (const auto& argument : schema.arguments()) {
      if (!argument.kwarg_only()) ++tensors;
      else options_.push_back({argument.name(), argument.default_value()});
    }
  }

  size_t tensors = 0; // of the schema; its options come after them

  void clear() { groups_.clear(); }

  // `values`: the same options as Python has them, a tuple
  void add(
      std::vector<c10::IValue> options, PyObject* values, uint64_t present, const at::Tensor& first, PyObject* launcher) {
    for (auto& group : groups_) {
      if (group.fits(options, present)) return group.table.add(first, launcher);
    }
    groups_.push_back({std::move(options), pybind11::reinterpret_borrow<pybind11::tuple>(values), present, Table()});
    groups_.back().table.add(first, launcher);
  }

  // As the dispatcher calls it.
  Start launch(at::ArrayRef<c10::IValue> arguments, std::vector<at::Tensor>& made) const {
    Tensors given;
    size_t count = 0;
    uint64_t present = 0;
    for (size_t i = 0; i < tensors; ++i) {
      if (!arguments[i].isTensor()) continue;
      const at::Tensor& tensor = arguments[i].toTensor();
      if (!tensor.defined()) continue;
      if (count == kMostPointers || !is_exact(tensor)) return Start::kDeclined;
      present |= uint64_t{1} << i;
      given[count++] = &tensor;
    }
    const auto options = arguments.slice(tensors);
    return start(given, count, made, [&](const Group& group) { return group.fits(options, present); });
  }

  // As Python calls it: tensors by place, then the options of these names.
  Start launch(PyObject* const* arguments, size_t places, PyObject* names, std::vector<at::Tensor>& made) const {
    Tensors given;
    size_t count = 0;
    uint64_t present = 0;
    if (places > tensors) return Start::kDeclined;
    for (size_t i = 0; i < places; ++i) {
      if (arguments[i] == Py_None) continue;
      if (count == kMostPointers || !unpack(&arguments[i], 1, given, count)) return Start::kDeclined;
      present |= uint64_t{1} << i;
      ++count;
    }
    if (count == 0 || may_be_cast(*given[0])) return Start::kDeclined;
    PyObject* const* values = arguments + places;
    return start(given, count, made, [&](const Group& group) {
      return group.present == present && has(group, values, names);
    });
  }

 private:
  struct Option {
    std::string name;
    std::optional<c10::IValue> usual;
  };

  struct Group {
    std::vector<c10::IValue> options;
    pybind11::tuple values;
    uint64_t present;
    Table table;

    bool fits(at::ArrayRef<c10::IValue> others, uint64_t others_present) const {
      return present == others_present && std::equal(options.begin(), options.end(), others.begin(), others.end(), [](const auto& a, const auto& b) { return is_same(a, b); });
    }
  };

  template <class Fits>
  Start start(Tensors& given, size_t count, std::vector<at::Tensor>& made, const Fits& fits) const {
    if (count == 0 || !is_plain(*given[0])) return Start::kDeclined;
    for (const auto& group : groups_) {
      if (!fits(group)) continue;
      Launcher* launcher = group.table.find(*given[0]);
      if (launcher == nullptr || launcher->kernel->inputs != count) return Start::kDeclined;
      Py_INCREF(launcher); // another thread may clear this while the kernel runs
      const Start result = launcher->kernel->launch(given, count, made);
      Py_DECREF(launcher);
      return result;
    }
    return Start::kDeclined;
  }

  // Whether the options of a group are those of these names and values, and for the rest the usual ones.
  bool has(const Group& group, PyObject* const* values, PyObject* names) const {
    const Py_ssize_t count = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    Py_ssize_t used = 0;
    for (size_t i = 0; i < options_.size(); ++i) {
      Py_ssize_t place = 0;
      while (place < count && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, place), options_[i].name.c_str()) != 0) ++place;
      if (place < count) {
        ++used;
        if (!is_same(values[place], PyTuple_GET_ITEM(group.values.ptr(), static_cast<Py_ssize_t>(i)))) return false;
      } else if (!options_[i].usual || !is_same(group.options[i], *options_[i].usual)) {
        return false;
      }
    }
    return used == count; // another name is for PyTorch to refuse
  }

  // Subclasses are not for kernels, though the dispatcher may take one for a plain tensor.
  static bool is_exact(const at::Tensor& tensor) {
    PyObject* object = THPVariable_Wrap(tensor);
    const bool found = object != nullptr && THPVariable_CheckExact(object);
    Py_XDECREF(object);
    return found;
  }

  std::vector<Option> options_;
  std::vector<Group> groups_;
};

// What the dispatcher calls.
class Boxed final : public c10::OperatorKernel {
 public:
  // `function` takes the tensors, and by name those options that are not the default; with `wants_keys` first the
  // dispatch keys of the call, as a number.
  Boxed(std::shared_ptr<Kernels> kernels, PyObject* function, bool wants_keys)
      : kernels_(std::move(kernels)), function_(function), wants_keys_(wants_keys) {
    Py_INCREF(function_);
  }
  ~Boxed() override {
    if (Py_IsInitialized() == 0) { // the dispatcher goes after Python: what Python held is gone
      new std::shared_ptr<Kernels>(std::move(kernels_));
      return;
    }
    const Gil gil;
    Py_DECREF(function_);
    kernels_.reset();
  }

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const Gil gil;
    const auto kernels = kernels_; // this may go while the kernel runs
    const size_t count = op.schema().arguments().size();
    const auto arguments = torch::jit::last(*stack, count);
    std::vector<at::Tensor> results;
    Start result = Start::kDeclined;
    try {
      result = kernels->launch(arguments, results);
    } catch (const c10::Error&) { // a tensor that has no sizes or no memory to tell of
    }
    if (result == Start::kDeclined) {
      results.clear();
      result = call(op.schema(), keys, arguments, results) ? Start::kDone : Start::kRaised;
    }
    if (result == Start::kRaised) throw pybind11::error_already_set();
    torch::jit::drop(*stack, count);
    for (auto& each : results) stack->emplace_back(std::move(each));
  }

 private:
  // Whether the Python function gave results; else a Python error is set.
  bool call(
      const c10::FunctionSchema& schema,
      c10::DispatchKeySet keys,
      at::ArrayRef<c10::IValue> arguments,
      std::vector<at::Tensor>& results) const {
    size_t tensors = kernels_->tensors;
    while (tensors > 0 && arguments[tensors - 1].isNone()) --tensors; // absent ones are left out
    const auto function = pybind11::reinterpret_borrow<pybind11::object>(function_);
    const auto given = pybind11::reinterpret_steal<pybind11::object>(PyTuple_New(static_cast<Py_ssize_t>(wants_keys_ + tensors)));
    const auto named = pybind11::reinterpret_steal<pybind11::object>(PyDict_New());
    if (!given || !named) return false;
    if (wants_keys_) PyTuple_SET_ITEM(given.ptr(), 0, PyLong_FromUnsignedLongLong(keys.raw_repr()));
    for (size_t i = 0; i < tensors; ++i) {
      PyObject* tensor = to_python(arguments[i]);
      if (tensor == nullptr) return false;
      PyTuple_SET_ITEM(given.ptr(), static_cast<Py_ssize_t>(wants_keys_ + i), tensor);
    }
    for (size_t i = kernels_->tensors; i < arguments.size(); ++i) {
      const auto& argument = schema.arguments()[i];
      if (argument.default_value() && is_same(arguments[i], *argument.default_value())) continue;
      const auto value = pybind11::reinterpret_steal<pybind11::object>(to_python(arguments[i]));
      if (!value || PyDict_SetItemString(named.ptr(), argument.name().c_str(), value.ptr()) != 0) return false;
    }
    const auto found = pybind11::reinterpret_steal<pybind11::object>(PyObject_Call(function.ptr(), given.ptr(), named.ptr()));
    return found && read_results(found.ptr(), schema.returns().size(), results);
  }

  // A tensor, or a tuple of as many as the schema says.
  static bool read_results(PyObject* found, size_t count, std::vector<at::Tensor>& results) {
    const bool is_tuple = PyTuple_Check(found);
    if ((is_tuple ? static_cast<size_t>(PyTuple_GET_SIZE(found)) : 1) == count) {
      for (size_t i = 0; i < count; ++i) {
        PyObject* each = is_tuple ? PyTuple_GET_ITEM(found, static_cast<Py_ssize_t>(i)) : found;
        if (THPVariable_Check(each)) results.push_back(THPVariable_Unpack(each));
      }
    }
    if (results.size() == count) return true;
    PyErr_Format(PyExc_TypeError, "an op gives %zu tensor(s), not %R", count, found);
    return false;
  }

  std::shared_ptr<Kernels> kernels_;
  PyObject* function_;
  bool wants_keys_;
};

// operator.caller(function): what is called as `function` is, and calls it where nothing is launched
struct Caller {
  PyObject_HEAD
  std::shared_ptr<Kernels>* kernels;
  PyObject* function;
  vectorcallfunc vectorcall;
};

inline PyTypeObject caller_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

inline PyObject* call_caller(PyObject* self, PyObject* const* arguments, size_t flagged, PyObject* names) {
  const auto& caller = *reinterpret_cast<Caller*>(self);
  // Modes of functions and profilers are served on the way to the dispatcher; it tells of all others by its keys.
  if (!at::impl::torch_function_mode_enabled() && !at::hasCallbacks()) {
    const auto kernels = *caller.kernels;
    std::vector<at::Tensor> made;
    const Start result = kernels->launch(arguments, static_cast<size_t>(PyVectorcall_NARGS(flagged)), names, made);
    if (result == Start::kRaised) return nullptr;
    if (result == Start::kDone) return wrap(made);
  }
  return PyObject_Vectorcall(caller.function, arguments, flagged, names);
}

// PyTorch keeps an op by the hash of its function, and asks that for its names.
inline Py_hash_t hash_caller(PyObject* self) { return PyObject_Hash(reinterpret_cast<Caller*>(self)->function); }

inline PyObject* get_of_caller(PyObject* self, PyObject* name) {
  return PyObject_GetAttr(reinterpret_cast<Caller*>(self)->function, name);
}

inline void destroy_caller(PyObject* self) {
  auto* caller = reinterpret_cast<Caller*>(self);
  delete caller->kernels;
  Py_XDECREF(caller->function);
  Py_TYPE(self)->tp_free(self);
}

struct Operator {
  PyObject_HEAD
  std::shared_ptr<Kernels>* kernels;
  std::vector<c10::RegistrationHandleRAII>* registered;
  const c10::FunctionSchema* schema;
};

inline PyTypeObject operator_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

// Operator(name, run, differentiably), of an op that is defined
inline PyObject* create_operator(PyTypeObject* type, PyObject* arguments, PyObject* named) {
  static const char* names[] = {"name", "run", "differentiably", nullptr};
  const char* name = nullptr;
  PyObject *run = nullptr, *differentiably = nullptr;
  if (!PyArg_ParseTupleAndKeywords(arguments, named, "sOO", const_cast<char**>(names), &name, &run, &differentiably)) {
    return nullptr;
  }
  auto* self = reinterpret_cast<Operator*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  try {
    auto& dispatcher = c10::Dispatcher::singleton();
    const auto op = dispatcher.findSchemaOrThrow(name, "");
    self->schema = &op.schema();
    self->kernels = new std::shared_ptr<Kernels>(std::make_shared<Kernels>(op.schema()));
    self->registered = new std::vector<c10::RegistrationHandleRAII>();
    const std::pair<c10::DispatchKey, PyObject*> entries[] = {
        {c10::DispatchKey::CPU, run},
        {c10::DispatchKey::CUDA, run},
        {c10::DispatchKey::AutogradCPU, differentiably},
        {c10::DispatchKey::AutogradCUDA, differentiably}};
    for (const auto& [key, function] : entries) {
      auto kernel = c10::KernelFunction::makeFromBoxedFunctor(
          std::make_unique<Boxed>(*self->kernels, function, function == differentiably));
      self->registered->push_back(
          dispatcher.registerImpl(op.operator_name(), key, std::move(kernel), std::nullopt, nullptr, "ksearch's launcher"));
    }
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    Py_DECREF(self);
    return nullptr;
  }
  return reinterpret_cast<PyObject*>(self);
}

// operator.close(): the Python functions are called again. No other thread may be in a call.
inline PyObject* close_operator(PyObject* self, PyObject*) {
  delete std::exchange(reinterpret_cast<Operator*>(self)->registered, nullptr);
  Py_RETURN_NONE;
}

inline void destroy_operator(PyObject* self) {
  auto* op = reinterpret_cast<Operator*>(self);
  delete op->registered;
  delete op->kernels;
  Py_TYPE(self)->tp_free(self);
}

inline PyObject* clear_operator(PyObject* self, PyObject*) {
  (*reinterpret_cast<Operator*>(self)->kernels)->clear();
  Py_RETURN_NONE;
}

// operator.add(tensors, options, launcher)
inline PyObject* add_to_operator(PyObject* self, PyObject* arguments) {
  PyObject *tensors = nullptr, *options = nullptr, *launcher = nullptr;
  if (!PyArg_ParseTuple(
          arguments, "O!O!O!", &PyTuple_Type, &tensors, &PyTuple_Type, &options, &launcher_type, &launcher)) {
    return nullptr;
  }
  const auto& op = *reinterpret_cast<Operator*>(self);
  auto& kernels = **op.kernels;
  const auto& schema = op.schema->arguments();
  if (static_cast<size_t>(PyTuple_GET_SIZE(tensors)) > kernels.tensors ||
      kernels.tensors + static_cast<size_t>(PyTuple_GET_SIZE(options)) != schema.size()) {
    PyErr_SetString(PyExc_TypeError, "these are not the op's tensors and options");
    return nullptr;
  }
  const at::Tensor* first = nullptr;
  uint64_t present = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
    PyObject* object = PyTuple_GET_ITEM(tensors, i);
    if (object == Py_None) continue;
    Tensors found;
    if (!unpack(&object, 1, found, 0) || !is_plain(*found[0])) Py_RETURN_NONE; // those are not launched on
    if (first == nullptr) first = found[0];
    present |= uint64_t{1} << i;
  }
  if (first == nullptr) Py_RETURN_NONE;
  std::vector<c10::IValue> values;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(options); ++i) {
    auto value = from_python(PyTuple_GET_ITEM(options, i), *schema[kernels.tensors + static_cast<size_t>(i)].type());
    if (!value) return nullptr;
    values.push_back(std::move(*value));
  }
  kernels.add(std::move(values), options, present, *first, launcher);
  Py_RETURN_NONE;
}

inline PyObject* make_caller(PyObject* self, PyObject* function) {
  auto* caller = reinterpret_cast<Caller*>(caller_type.tp_alloc(&caller_type, 0));
  if (caller == nullptr) return nullptr;
  Py_INCREF(function);
  caller->function = function;
  caller->kernels = new std::shared_ptr<Kernels>(*reinterpret_cast<Operator*>(self)->kernels);
  caller->vectorcall = call_caller;
  return reinterpret_cast<PyObject*>(caller);
}

inline PyMethodDef operator_methods[] = {
    {"add", add_to_operator, METH_VARARGS,
     "(tensors, options, launcher): calls of the same options whose first tensor looks so. Of absent tensors, and of "
     "options that are a default which schemas cannot write: None."},
    {"caller", make_caller, METH_O, "What is called as this function is, and calls it where nothing is launched."},
    {"clear", clear_operator, METH_NOARGS, "Nothing is launched until more is added."},
    {"close", close_operator, METH_NOARGS, "The dispatcher calls the Python functions again."},
    {nullptr, nullptr, 0, nullptr}};

inline bool ready_operator() {
  operator_type.tp_name = "ksearch_launcher.Operator";
  operator_type.tp_basicsize = sizeof(Operator);
  operator_type.tp_flags = Py_TPFLAGS_DEFAULT;
  operator_type.tp_new = create_operator;
  operator_type.tp_dealloc = destroy_operator;
  operator_type.tp_methods = operator_methods;
  caller_type.tp_name = "ksearch_launcher.Caller";
  caller_type.tp_basicsize = sizeof(Caller);
  caller_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  caller_type.tp_dealloc = destroy_caller;
  caller_type.tp_call = PyVectorcall_Call;
  caller_type.tp_hash = hash_caller;
  caller_type.tp_getattro = get_of_caller;
  caller_type.tp_vectorcall_offset = offsetof(Caller, vectorcall);
  return PyType_Ready(&operator_type) == 0 && PyType_Ready(&caller_type) == 0;
}

} // namespace ksearch
