// cosegflow: the version of these headers, for the preprocessor. The version of the library that a program runs with is
// library_version() (types.h).
#pragma once

#define COSEGFLOW_VERSION_MAJOR 0
#define COSEGFLOW_VERSION_MINOR 1
#define COSEGFLOW_VERSION_PATCH 0

// 10000 major + 100 minor + patch: 100 for 0.1.0.
#define COSEGFLOW_VERSION (10000 * COSEGFLOW_VERSION_MAJOR + 100 * COSEGFLOW_VERSION_MINOR + COSEGFLOW_VERSION_PATCH)
