// ksearch_launcher.Launcher: one kernel as Python sees it.

#pragma once

#include <algorithm>
#include <memory>

#include <torch/csrc/Dtype.h>

#include "kernel.h"

namespace ksearch {

struct Launcher {
  PyObject_HEAD
  Kernel* kernel;
  vectorcallfunc vectorcall;
};

inline PyTypeObject launcher_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

inline PyObject* decline() { Py_RETURN_NONE; }

// Whether the objects are tensors and no subclass of them; in `found`, which has room for them.
inline bool unpack(PyObject* const* objects, size_t count, Tensors& found, size_t place) {
  for (size_t i = 0; i < count; ++i) {
    if (!THPVariable_CheckExact(objects[i])) return false;
    found[place + i] = &THPVariable_Unpack(objects[i]);
  }
  return true;
}

// A tensor, or a tuple of several.
inline PyObject* wrap(std::vector<at::Tensor>& made) {
  if (made.size() == 1) return THPVariable_Wrap(std::move(made[0]));
  PyObject* results = PyTuple_New(static_cast<Py_ssize_t>(made.size()));
  for (size_t i = 0; results != nullptr && i < made.size(); ++i) {
    PyTuple_SET_ITEM(results, static_cast<Py_ssize_t>(i), THPVariable_Wrap(std::move(made[i])));
  }
  return results;
}

inline PyObject* start(Kernel& kernel, PyObject* tensors, PyObject* out) {
  if (!PyTuple_CheckExact(tensors) || static_cast<size_t>(PyTuple_GET_SIZE(tensors)) != kernel.inputs) return decline();
  Tensors given;
  if (!unpack(PySequence_Fast_ITEMS(tensors), kernel.inputs, given, 0)) return decline();
  size_t count = kernel.inputs;
  if (out != Py_None) {
    PyObject* const* results = &out;
    size_t found = 1;
    if (PyTuple_CheckExact(out)) {
      results = PySequence_Fast_ITEMS(out);
      found = PyTuple_GET_SIZE(out);
    }
    if (found != kernel.outputs() || !unpack(results, found, given, count)) return decline();
    count += found;
  }
  std::vector<at::Tensor> made;
  const Start result = kernel.launch(given, count, made);
  if (result == Start::kRaised) return nullptr;
  if (result == Start::kDeclined) return decline();
  if (out != Py_None) {
    Py_INCREF(out);
    return out;
  }
  return wrap(made);
}

// launcher(tensors, out): the result, or None where the call is to be looked at
inline PyObject* call(PyObject* self, PyObject* const* arguments, size_t flagged, PyObject* names) {
  if (PyVectorcall_NARGS(flagged) != 2 || names != nullptr) {
    PyErr_SetString(PyExc_TypeError, "a launcher takes a tuple of tensors and `out`");
    return nullptr;
  }
  return start(*reinterpret_cast<Launcher*>(self)->kernel, arguments[0], arguments[1]);
}

// launcher.learn(given): tensors that fit, the inputs and what `out` holds
inline PyObject* learn(PyObject* self, PyObject* given) {
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

inline bool read_shapes(PyObject* shapes, std::vector<std::vector<int64_t>>& found) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(shapes); ++i) {
    found.emplace_back();
    if (!read(PyTuple_GetItem(shapes, i), found.back())) return false;
  }
  return PyErr_Occurred() == nullptr;
}

inline bool read_dtypes(PyObject* dtypes, std::vector<at::ScalarType>& found) {
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

inline bool read_steps(PyObject* steps, std::vector<Step>& found) {
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

inline PyObject* create(PyTypeObject* type, PyObject* arguments, PyObject* named) {
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

inline void destroy(PyObject* self) {
  auto* kernel = reinterpret_cast<Launcher*>(self)->kernel;
  Py_XDECREF(kernel->current_stream);
  delete kernel;
  Py_TYPE(self)->tp_free(self);
}

inline PyObject* get_starts(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(reinterpret_cast<Launcher*>(self)->kernel->starts);
}

inline PyMethodDef launcher_methods[] = {
    {"learn", learn, METH_O, "Tensors that fit: calls of such as these are answered from now on."},
    {nullptr, nullptr, 0, nullptr}};
inline PyGetSetDef launcher_properties[] = {
    {"starts", get_starts, nullptr, "Calls that were answered.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

inline bool ready_launcher() {
  launcher_type.tp_name = "ksearch_launcher.Launcher";
  launcher_type.tp_basicsize = sizeof(Launcher);
  launcher_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  launcher_type.tp_new = create;
  launcher_type.tp_dealloc = destroy;
  launcher_type.tp_call = PyVectorcall_Call;
  launcher_type.tp_vectorcall_offset = offsetof(Launcher, vectorcall);
  launcher_type.tp_methods = launcher_methods;
  launcher_type.tp_getset = launcher_properties;
  return PyType_Ready(&launcher_type) == 0;
}

} // namespace ksearch
