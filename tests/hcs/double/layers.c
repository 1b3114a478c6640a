#include "double.h"
void layers_reset(void) {}
