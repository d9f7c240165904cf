// Binds what reads and writes files beside Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "guard.hpp"
#include "loader.hpp"
#include "memory_file.hpp"
#include "unloader.hpp"

namespace nb = nanobind;

namespace fm {

void bind_files(nb::module_ &m) {
    using Spans = std::vector<std::tuple<int, int64_t, int64_t, uintptr_t>>;
    const nb::call_guard<nb::gil_scoped_release> unlocked;
    nb::class_<Loader>(m, "Loader")
        .def(nb::init<uintptr_t, int64_t, int, int, uintptr_t>())
        .def("begin", [](Loader &loader, const Spans &given) {
            std::vector<Span> spans;
            for (const auto &[file, offset, nbytes, to] : given) spans.push_back({file, offset, nbytes, to});
            return loader.begin(std::move(spans));
        })
        .def("wait", &Loader::wait, unlocked)
        .def("close", &Loader::close, unlocked);
    using Extents = std::vector<std::tuple<uintptr_t, int64_t, int64_t, int, int, int64_t, int64_t, uintptr_t>>;
    nb::class_<Unloader>(m, "Unloader")
        .def(nb::init<uintptr_t, int64_t, int, int, uintptr_t>())
        .def("write", [](Unloader &unloader, const Extents &given) {
            std::vector<Extent> extents;
            for (const auto &[from, nbytes, offset, cached, direct, first, last, map] : given)
                extents.push_back({from, nbytes, offset, cached, direct, first, last, map});
            return unloader.write(extents);
        }, unlocked);
    m.def(
        "write_mapped",
        [](uintptr_t to, uintptr_t from, int64_t n) {
            return write_mapped(reinterpret_cast<char *>(to), reinterpret_cast<const char *>(from), n);
        },
        unlocked);
    m.def("guard", &guard);
    m.def("lost", &lost);
    m.def("unguard", &unguard);
}

}  // namespace fm
