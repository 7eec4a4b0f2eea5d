// The version that the library was compiled as.
#include "cosegflow/types.h"

namespace cosegflow {

int library_version() { return COSEGFLOW_VERSION; }

}  // namespace cosegflow
