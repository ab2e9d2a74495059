// Codes to bytes and back, for Python: see vq_plugin/extension.py. Needs no torch.
#pragma once

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

namespace vq {

PyObject* pack_bits_of(PyObject*, PyObject* arguments);
PyObject* unpack_bits_of(PyObject*, PyObject* arguments);
PyObject* ans_push_of(PyObject*, PyObject* arguments);
PyObject* ans_pop_of(PyObject*, PyObject* arguments);

}  // namespace vq
