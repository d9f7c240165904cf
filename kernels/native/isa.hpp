// The instruction set that was chosen when the module was loaded, and an op's function for it.
#pragma once

namespace fm {

enum Isa { BASE, V3, V4 };
extern Isa isa;

#ifdef FM_HAS_v4
#define FM_KERNEL(op) (::fm::isa == V4 ? v4::op : ::fm::isa == V3 ? v3::op : base::op)
#else
#define FM_KERNEL(op) (base::op)
#endif

}  // namespace fm
