// ksearch_launcher.Router: many kernels of one op, for calls from Python that are nothing but tensors.

#pragma once

#include "table.h"

namespace ksearch {

struct Router {
  PyObject_HEAD
  Table* table;
  vectorcallfunc vectorcall;
};

inline PyTypeObject router_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

// router(tensors, out): as a launcher
inline PyObject* route(PyObject* self, PyObject* const* arguments, size_t flagged, PyObject* names) {
  if (PyVectorcall_NARGS(flagged) != 2 || names != nullptr || !PyTuple_CheckExact(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "a router takes a tuple of tensors and `out`");
    return nullptr;
  }
  Tensors first;
  if (PyTuple_GET_SIZE(arguments[0]) == 0 || !unpack(PySequence_Fast_ITEMS(arguments[0]), 1, first, 0)) return decline();
  if (!is_plain(*first[0]) || may_be_cast(*first[0])) return decline(); // handles keep the dtype
  Launcher* launcher = reinterpret_cast<Router*>(self)->table->find(*first[0]);
  if (launcher == nullptr) return decline();
  Py_INCREF(launcher); // another thread may replace it while the kernel runs
  PyObject* result = start(*launcher->kernel, arguments[0], arguments[1]);
  Py_DECREF(launcher);
  return result;
}

inline PyObject* create_router(PyTypeObject* type, PyObject*, PyObject*) {
  auto* self = reinterpret_cast<Router*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  self->table = new Table();
  self->vectorcall = route;
  return reinterpret_cast<PyObject*>(self);
}

inline void destroy_router(PyObject* self) {
  delete reinterpret_cast<Router*>(self)->table;
  Py_TYPE(self)->tp_free(self);
}

// router.add(tensor, launcher)
inline PyObject* add_to_router(PyObject* self, PyObject* arguments) {
  PyObject *tensor = nullptr, *launcher = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO!", &tensor, &launcher_type, &launcher)) return nullptr;
  Tensors first;
  if (!unpack(&tensor, 1, first, 0) || !is_plain(*first[0])) {
    PyErr_SetString(PyExc_TypeError, "a router is told of a plain tensor");
    return nullptr;
  }
  reinterpret_cast<Router*>(self)->table->add(*first[0], launcher);
  Py_RETURN_NONE;
}

inline PyMethodDef router_methods[] = {
    {"add", add_to_router, METH_VARARGS, "(tensor, launcher): calls whose first tensor is of its shape, dtype and device."},
    {nullptr, nullptr, 0, nullptr}};

inline bool ready_router() {
  router_type.tp_name = "ksearch_launcher.Router";
  router_type.tp_basicsize = sizeof(Router);
  router_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  router_type.tp_new = create_router;
  router_type.tp_dealloc = destroy_router;
  router_type.tp_call = PyVectorcall_Call;
  router_type.tp_vectorcall_offset = offsetof(Router, vectorcall);
  router_type.tp_methods = router_methods;
  return PyType_Ready(&router_type) == 0;
}

} // namespace ksearch
