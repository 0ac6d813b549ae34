// ksearch_launcher: calls a kernel without Python in between, where the tensors are like those of an earlier call.
//
// `ksearch launcher` compiles this file; `ksearch.runtime.launcher` loads it, and says what the arguments are.

#include "operator.h"
#include "router.h"

namespace {

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "ksearch_launcher", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit_ksearch_launcher() {
  using namespace ksearch;
  if (!ready_launcher() || !ready_router() || !ready_operator()) return nullptr;
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  PyModule_AddObjectRef(module, "Launcher", reinterpret_cast<PyObject*>(&launcher_type));
  PyModule_AddObjectRef(module, "Router", reinterpret_cast<PyObject*>(&router_type));
  PyModule_AddObjectRef(module, "Operator", reinterpret_cast<PyObject*>(&operator_type));
  return module;
}
