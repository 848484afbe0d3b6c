// xgblora._host: addresses and sizes come in as integers; tensors stay on the side of Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host.h"

namespace py = pybind11;

namespace {

template <class Pointed>
Pointed* at(uintptr_t address) {
  return reinterpret_cast<Pointed*>(address);
}

xgblora::Distribution distribution_named(const std::string& name) {
  if (name == "gaussian") return xgblora::Distribution::gaussian;
  if (name == "rademacher") return xgblora::Distribution::rademacher;
  throw py::value_error("distribution=" + name + ": must be one of gaussian, rademacher");
}

xgblora::Rule rule_named(const std::string& name) {
  if (name == "sgd") return xgblora::Rule::sgd;
  if (name == "sign") return xgblora::Rule::sign;
  if (name == "momentum") return xgblora::Rule::momentum;
  if (name == "adam") return xgblora::Rule::adam;
  throw py::value_error("optimizer=" + name + ": must be one of sgd, momentum, adam, sign");
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "C++ of xgblora for CPU tensors: raw addresses. Called by xgblora.ops.";

  module.def("instruction_sets", &xgblora::instruction_sets, "Those that this machine can run, best first.");

  module.def(
      "perturb",
      [](uintptr_t master, uintptr_t live, int64_t live_code, int64_t size, int64_t rows, uintptr_t seeds,
         int64_t seed_count, uintptr_t eps, uintptr_t signs, const std::string& distribution, int threads, int set) {
        const xgblora::Perturbation job = {at<const float>(master), at<void>(live),   live_code,
                                           size,                    rows,             at<const uint64_t>(seeds),
                                           seed_count,              *at<float>(eps), at<const float>(signs),
                                           distribution_named(distribution)};
        const py::gil_scoped_release release;
        xgblora::perturb(job, threads, set);
      },
      py::arg("master"), py::arg("live"), py::arg("live_code"), py::arg("size"), py::arg("rows"), py::arg("seeds"),
      py::arg("seed_count"), py::arg("eps"), py::arg("signs"), py::arg("distribution"), py::arg("threads"),
      py::arg("set") = 0, "xgblora.ops.perturb with the instruction set of that number.");

  module.def(
      "update",
      [](uintptr_t master, int64_t size, uintptr_t seeds, uintptr_t coefficients, int64_t directions, uintptr_t lr,
         uintptr_t weight_decay, const std::string& distribution, const std::string& optimizer, uintptr_t first,
         uintptr_t second, uintptr_t factors, int threads, int set) {
        const xgblora::Update job = {at<float>(master),
                                     size,
                                     at<const uint64_t>(seeds),
                                     at<const float>(coefficients),
                                     directions,
                                     *at<float>(lr),
                                     *at<float>(weight_decay),
                                     distribution_named(distribution),
                                     rule_named(optimizer),
                                     at<float>(first),
                                     at<float>(second),
                                     at<const float>(factors)};
        const py::gil_scoped_release release;
        xgblora::update(job, threads, set);
      },
      py::arg("master"), py::arg("size"), py::arg("seeds"), py::arg("coefficients"), py::arg("directions"),
      py::arg("lr"), py::arg("weight_decay"), py::arg("distribution"), py::arg("optimizer"), py::arg("first"),
      py::arg("second"), py::arg("factors"), py::arg("threads"), py::arg("set") = 0,
      "xgblora.ops.update_ with the instruction set of that number; 0 for a tensor that the rule has not.");

  module.def(
      "merge",
      [](uintptr_t weight, uintptr_t remainder, int64_t weight_code, int64_t rows, int64_t columns,
         uintptr_t row_factors, uintptr_t column_factors, int threads, int set) {
        const xgblora::Merge job = {at<void>(weight),      at<int16_t>(remainder),
                                    weight_code,           rows,
                                    columns,               at<const float>(row_factors),
                                    at<const float>(column_factors)};
        const py::gil_scoped_release release;
        xgblora::merge(job, threads, set);
      },
      py::arg("weight"), py::arg("remainder"), py::arg("weight_code"), py::arg("rows"), py::arg("columns"),
      py::arg("row_factors"), py::arg("column_factors"), py::arg("threads"), py::arg("set") = 0,
      "Add row_factors[r] * column_factors[c] to a weight without gaps; remainder 0 rounds to nearest.");

  module.def(
      "merge_noise",
      [](uintptr_t weight, uintptr_t remainder, int64_t weight_code, int64_t rows, int64_t columns, int64_t row_start,
         int64_t column_start, bool scales_rows, uintptr_t seeds, uintptr_t coefficients, int64_t terms, int threads,
         int set) {
        const xgblora::NoiseMerge job = {at<void>(weight),
                                         at<int16_t>(remainder),
                                         weight_code,
                                         rows,
                                         columns,
                                         row_start,
                                         column_start,
                                         scales_rows,
                                         at<const uint64_t>(seeds),
                                         at<const float>(coefficients),
                                         terms};
        const py::gil_scoped_release release;
        xgblora::merge_noise(job, threads, set);
      },
      py::arg("weight"), py::arg("remainder"), py::arg("weight_code"), py::arg("rows"), py::arg("columns"),
      py::arg("row_start"), py::arg("column_start"), py::arg("scales_rows"), py::arg("seeds"), py::arg("coefficients"),
      py::arg("terms"), py::arg("threads"), py::arg("set") = 0,
      "xgblora.ops.merge_noise_ of one weight without gaps; remainder 0 rounds to nearest.");

  module.def(
      "row_terms",
      [](uintptr_t x, uintptr_t y, int64_t x_code, int64_t rows, int64_t inputs, int64_t outputs, uintptr_t a,
         uintptr_t b, int64_t a_code, int64_t a_stride, int64_t b_stride, uintptr_t groups, int64_t entries,
         int64_t group_count, double scale, uintptr_t t, bool given, int threads, int set) {
        const xgblora::RowTerms job = {at<const void>(x),
                                       at<void>(y),
                                       x_code,
                                       rows,
                                       inputs,
                                       outputs,
                                       at<const void>(a),
                                       at<const void>(b),
                                       a_code,
                                       a_stride,
                                       b_stride,
                                       at<const int32_t>(groups),
                                       entries > 0 ? rows / entries : 1,
                                       static_cast<float>(scale),
                                       at<float>(t),
                                       given};
        for (int64_t entry = 0; entry < entries; ++entry) {
          const int64_t group = job.groups[entry];
          if (group < 0 || group >= group_count) {
            throw py::index_error("group_of_row has " + std::to_string(group) + ": must be among 0 .. " +
                                  std::to_string(group_count - 1));
          }
        }
        const py::gil_scoped_release release;
        xgblora::row_terms(job, threads, set);
      },
      py::arg("x"), py::arg("y"), py::arg("x_code"), py::arg("rows"), py::arg("inputs"), py::arg("outputs"),
      py::arg("a"), py::arg("b"), py::arg("a_code"), py::arg("a_stride"), py::arg("b_stride"), py::arg("groups"),
      py::arg("entries"), py::arg("group_count"), py::arg("scale"), py::arg("t"), py::arg("given"), py::arg("threads"),
      py::arg("set") = 0, "The rank-1 terms of rows that each name their adapter; 0 for what is not wanted.");
}
