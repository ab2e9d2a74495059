// The Python module. Importing it needs no torch; the operators do, which are registered when asked.
#include <cstdint>
#include <exception>

#include "coding_library.h"
#include "convolution_library.h"
#include "library.h"

namespace {

PyObject* isa(PyObject*, PyObject*) {
  return PyUnicode_FromString(vq::kernels_in_use.load()->name);
}

PyObject* use_isa(PyObject*, PyObject* argument) {
  PyObject* bytes = PyUnicode_AsUTF8String(argument);
  if (bytes == nullptr) return nullptr;
  const char* name = PyBytes_AsString(bytes);
  const vq::Kernels* kernels = name == nullptr ? nullptr : vq::find_kernels(name);
  if (kernels != nullptr) vq::kernels_in_use = kernels;
  Py_DECREF(bytes);
  return PyBool_FromLong(kernels != nullptr);
}

PyObject* has_fast(PyObject*, PyObject*) {
  const vq::Kernels* kernels = vq::kernels_in_use.load();
  return Py_BuildValue("(NN)", PyBool_FromLong(kernels->lookup_nibbles_fast.run != nullptr),
                       PyBool_FromLong(kernels->scalar_nibbles_fast.run != nullptr));
}

PyObject* triple(const vq::Estimates& found) {
  if (found.name == nullptr) Py_RETURN_NONE;
  return Py_BuildValue("(sdd)", found.name, found.codes, found.plain);
}

PyObject* linear_estimates(PyObject*, PyObject* arguments) {
  long long n[7];
  int is[4], precision;
  if (!PyArg_ParseTuple(arguments, "LLLLLLLppppi", n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, is,
                        is + 1, is + 2, is + 3, &precision))
    return nullptr;
  const vq::Shape shape{n[0], n[1],       n[2],       n[3],       n[4],      n[5],
                        n[6], is[0] != 0, is[1] != 0, is[2] != 0, is[3] != 0};
  return triple(vq::estimates(shape, static_cast<vq::Precision>(precision)));
}

PyObject* convolution_estimates(PyObject*, PyObject* arguments) {
  long long n[10];
  int shared, precision;
  if (!PyArg_ParseTuple(arguments, "LLLLLLLLLLpi", n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6,
                        n + 7, n + 8, n + 9, &shared, &precision))
    return nullptr;
  const vq::ConvolutionShape shape{n[0], n[1], n[2], n[3], n[4],       n[5],
                                   n[6], n[7], n[8], n[9], shared != 0};
  return triple(vq::estimates(shape, static_cast<vq::Precision>(precision)));
}

// Without tuples of arguments: every pass of a layer with a kept weight asks.
PyObject* digest(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "digest(address, bytes)");
    return nullptr;
  }
  const unsigned long long at = PyLong_AsUnsignedLongLong(arguments[0]);
  const size_t bytes = PyLong_AsSize_t(arguments[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  uint64_t found[vq::kDigest];
  vq::kernels_in_use.load()->digest(reinterpret_cast<const void*>(at), bytes, found);
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(found), sizeof found);
}

PyObject* register_operators(PyObject*, PyObject*) {
  static bool done = false;
  try {
    done = done || vq::register_operators();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return nullptr;
  }
  if (done) Py_RETURN_NONE;
  PyErr_SetString(PyExc_ImportError, "libtorch is not loaded, or older than 2.10");
  return nullptr;
}

PyMethodDef methods[] = {
    {"register_operators", register_operators, METH_NOARGS,
     "Registers the operators with torch, once; ImportError where torch is missing or too old."},
    {"isa", isa, METH_NOARGS, "Name of the instruction set in use."},
    {"use_isa", use_isa, METH_O, "Uses an instruction set; False where this machine lacks it."},
    {"has_fast", has_fast, METH_NOARGS,
     "Whether sub-vectors, and single weights, have kernels of 8 bits."},
    {"linear_estimates", linear_estimates, METH_VARARGS,
     "(batch, in, out, stages, k, dim, group or 0, shared, packed, along_out, pointwise, "
     "0 exact, 1 high or 2 fast) -> (name of the kernel, its picoseconds on one thread, those of "
     "torch's float32 layer with a kept weight), as estimated; None without a kernel."},
    {"convolution_estimates", convolution_estimates, METH_VARARGS,
     "(images, input places, output places, in, out, groups, kernel positions, stages, k, dim, "
     "shared, 0 exact, 1 high or 2 fast) -> the same of a convolution."},
    {"digest", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(digest)), METH_FASTCALL,
     "(address, bytes) -> 64 bytes that are others once those at the address are."},
    {"pack_bits", vq::pack_bits_of, METH_VARARGS,
     "(codes, bits, packed): codes of a byte each to codes of so many bits."},
    {"unpack_bits", vq::unpack_bits_of, METH_VARARGS, "(packed, bits, codes): the way back."},
    {"ans_push", vq::ans_push_of, METH_VARARGS,
     "(frequencies, symbols, words, state) -> (state, how many words were written)."},
    {"ans_pop", vq::ans_pop_of, METH_VARARGS,
     "(frequencies, words, state, how many are left, symbols) -> (state, how many are left)."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_native",
    "Native kernels and coders; see vq_plugin/extension.py.",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  vq::kernels_in_use = vq::best_kernels();
  return PyModule_Create(&module);
}
