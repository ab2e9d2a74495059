#include "coding_library.h"

#include <new>

#include "ans.h"
#include "bits.h"

namespace vq {
namespace {

// The items of an argument, which Python keeps as long as this object is there.
class Items {
 public:
  Items(PyObject* object, int flags) {
    if (PyObject_GetBuffer(object, &view_, flags) != 0) view_.obj = nullptr;
  }
  Items(const Items&) = delete;
  Items& operator=(const Items&) = delete;
  ~Items() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }

  explicit operator bool() const { return view_.obj != nullptr; }
  Py_ssize_t width() const { return view_.itemsize; }
  int64_t count() const { return width() > 0 ? view_.len / width() : 0; }
  template <typename T>
  bool are() const {
    return width() == sizeof(T) && reinterpret_cast<uintptr_t>(view_.buf) % alignof(T) == 0;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(view_.buf);
  }

 private:
  Py_buffer view_{};
};

constexpr int kRead = PyBUF_ND, kWrite = PyBUF_ND | PyBUF_WRITABLE;

PyObject* fail(const char* message) {
  PyErr_SetString(PyExc_ValueError, message);
  return nullptr;
}

// Other threads of Python run meanwhile. False, with an exception set, where memory ran out.
template <typename Work>
bool without_gil(const Work& work) {
  bool done = true;
  PyThreadState* state = PyEval_SaveThread();
  try {
    work();
  } catch (const std::bad_alloc&) {
    done = false;
  }
  PyEval_RestoreThread(state);
  if (!done) PyErr_NoMemory();
  return done;
}

bool all_bytes(const Items& codes, const Items& packed, int bits) {
  return codes.are<uint8_t>() && packed.are<uint8_t>() && bits >= 1 && bits <= 8 &&
         packed.count() == bytes_of(codes.count(), bits);
}

// Calls `work` with symbols as numbers of their width, one of three.
template <typename Work>
void with_symbols(const Items& symbols, const Work& work) {
  if (symbols.are<uint8_t>())
    work(symbols.as<uint8_t>());
  else if (symbols.are<uint16_t>())
    work(symbols.as<uint16_t>());
  else
    work(symbols.as<uint32_t>());
}

bool are_symbols(const Items& symbols) {
  return symbols.are<uint8_t>() || symbols.are<uint16_t>() || symbols.are<uint32_t>();
}

PyObject* stream_of(const AnsStream& stream) {
  return Py_BuildValue("(KL)", static_cast<unsigned long long>(stream.state),
                       static_cast<long long>(stream.size));
}

constexpr char kNoCodes[] = "no bytes, or another number of bytes than the codes have";
constexpr char kNoItems[] = "items of another width, or fewer than there have to be";
constexpr char kNoFrequencies[] = "these are no frequencies";

}  // namespace

PyObject* pack_bits_of(PyObject*, PyObject* arguments) {
  PyObject *from, *to;
  int bits;
  if (!PyArg_ParseTuple(arguments, "OiO", &from, &bits, &to)) return nullptr;
  const Items codes(from, kRead), packed(to, kWrite);
  if (!codes || !packed) return nullptr;
  if (!all_bytes(codes, packed, bits)) return fail(kNoCodes);
  if (!without_gil(
          [&] { pack_bits(codes.as<uint8_t>(), codes.count(), bits, packed.as<uint8_t>()); }))
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* unpack_bits_of(PyObject*, PyObject* arguments) {
  PyObject *from, *to;
  int bits;
  if (!PyArg_ParseTuple(arguments, "OiO", &from, &bits, &to)) return nullptr;
  const Items packed(from, kRead), codes(to, kWrite);
  if (!packed || !codes) return nullptr;
  if (!all_bytes(codes, packed, bits)) return fail(kNoCodes);
  if (!without_gil(
          [&] { unpack_bits(packed.as<uint8_t>(), codes.count(), bits, codes.as<uint8_t>()); }))
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* ans_push_of(PyObject*, PyObject* arguments) {
  PyObject *table_of, *from, *to;
  unsigned long long state;
  if (!PyArg_ParseTuple(arguments, "OOOK", &table_of, &from, &to, &state)) return nullptr;
  const Items frequencies(table_of, kRead), symbols(from, kRead), words(to, kWrite);
  if (!frequencies || !symbols || !words) return nullptr;
  if (!frequencies.are<uint32_t>() || !are_symbols(symbols) || !words.are<uint32_t>() ||
      words.count() <= symbols.count())
    return fail(kNoItems);
  const AnsTable table{frequencies.as<uint32_t>(), frequencies.count()};
  if (!table.valid()) return fail(kNoFrequencies);
  AnsStream stream{state, 0};
  bool below_k = true;
  if (!without_gil([&] {
        with_symbols(symbols, [&](const auto* values) {
          below_k = ans_push(table, values, symbols.count(), words.as<uint32_t>(), stream);
        });
      }))
    return nullptr;
  return below_k ? stream_of(stream) : fail("a symbol has no frequency");
}

PyObject* ans_pop_of(PyObject*, PyObject* arguments) {
  PyObject *table_of, *from, *to;
  unsigned long long state;
  long long left;
  if (!PyArg_ParseTuple(arguments, "OOKLO", &table_of, &from, &state, &left, &to)) return nullptr;
  const Items frequencies(table_of, kRead), words(from, kRead), symbols(to, kWrite);
  if (!frequencies || !words || !symbols) return nullptr;
  if (!frequencies.are<uint32_t>() || !words.are<uint32_t>() || !are_symbols(symbols) ||
      left < 0 || left > words.count())
    return fail(kNoItems);
  const AnsTable table{frequencies.as<uint32_t>(), frequencies.count()};
  if (!table.valid()) return fail(kNoFrequencies);
  AnsStream stream{state, left};
  if (!without_gil([&] {
        with_symbols(symbols, [&](auto* values) {
          ans_pop(table, words.as<uint32_t>(), stream, values, symbols.count());
        });
      }))
    return nullptr;
  return stream_of(stream);
}

}  // namespace vq
