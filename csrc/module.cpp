// An empty Python module: importing it loads this library, which registers the operators.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyMODINIT_FUNC PyInit__extension() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_extension",
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
