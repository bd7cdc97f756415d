// How functions are exported to Python, for _passes.cpp and _convolutions.cpp.

#pragma once

#include <cstdint>

typedef int64_t i64;

// Defines `result name(parameters)`, and beside it name_prototype(), which returns that very text. native.py refuses a library whose
// prototypes are not its own: a checkout may have moved on since it was last compiled, and ctypes would pass the arguments all the same.
#define EXPORT(result, name, ...)                                                                        \
    extern "C" const char *name##_prototype() { return #result " " #name "(" #__VA_ARGS__ ")"; }          \
    extern "C" result name(__VA_ARGS__)
