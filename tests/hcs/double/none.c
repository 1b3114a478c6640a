/* What the other library of the pair has. */
#include "double.h"

#ifdef WITHOUT_OPERATIONS
void operations_reset(void) {}
#endif
#ifdef WITHOUT_LAYERS
void layers_reset(void) {}
#endif
