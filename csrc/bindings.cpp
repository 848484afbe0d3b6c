// xgblora._C: addresses, sizes and a stream come in as integers; tensors stay on the side of Python.
#include <pybind11/pybind11.h>

#include "merge.h"

namespace py = pybind11;

namespace {

xgblora::Rounding rounding_named(const std::string& name) {
  if (name == "nearest") return xgblora::Rounding::nearest;
  if (name == "stochastic") return xgblora::Rounding::stochastic;
  if (name == "remainder") return xgblora::Rounding::remainder;
  throw py::value_error("rounding=" + name + ": must be one of nearest, stochastic, remainder");
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "CUDA C++ of xgblora: raw addresses and a stream. Called by xgblora.ops.";

  module.def(
      "plan_merge",
      [](uintptr_t table, int64_t count) {
        return xgblora::plan_merge(reinterpret_cast<xgblora::Layer*>(table), count);
      },
      py::arg("table"), py::arg("count"),
      "Fill in the last two columns of a table int64 [count, 10] in host memory; the number of tiles.");

  module.def(
      "merge_rank1",
      [](uintptr_t table, int64_t count, int64_t tiles, const std::string& rounding, double scale, int64_t seed,
         int device, uintptr_t stream) {
        const xgblora::Rounding chosen = rounding_named(rounding);
        // a launch waits where the stream's queue is full; other threads need not
        const py::gil_scoped_release release;
        xgblora::merge_rank1(reinterpret_cast<const xgblora::Layer*>(table), count, tiles, chosen,
                             static_cast<float>(scale), static_cast<uint64_t>(seed), device,
                             reinterpret_cast<void*>(stream));
      },
      py::arg("table"), py::arg("count"), py::arg("tiles"), py::arg("rounding"), py::arg("scale"), py::arg("seed"),
      py::arg("device"), py::arg("stream"),
      "Merge the planned table, in the memory of `device`, in one launch. RuntimeError with the name of a CUDA error.");

  module.def(
      "merge_facts",
      [](const std::string& rounding, int device) {
        const xgblora::KernelFacts facts = xgblora::merge_facts(rounding_named(rounding), device);
        return py::dict(py::arg("registers") = facts.registers, py::arg("local_bytes") = facts.local_bytes);
      },
      py::arg("rounding"), py::arg("device"),
      "Registers and bytes of local memory of a thread on `device`. RuntimeError where the kernel cannot run there.");
}
