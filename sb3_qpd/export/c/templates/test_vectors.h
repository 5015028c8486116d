/* Observations and what the student makes of them: written by sb3_qpd $version. */
#ifndef POLICY_TEST_VECTORS_H
#define POLICY_TEST_VECTORS_H

#include <stdint.h>

$vectors
#endif
