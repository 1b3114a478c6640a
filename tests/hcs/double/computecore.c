/* The exported functions of computecore.dll: schema 2, every call tracked by an operation. Named as in the real DLL,
 * so it is a library of its own beside vmcompute's; both are made of the same model. */
#include "double.h"

#include <stdlib.h>
#include <string.h>

void operations_reset(void) {}
