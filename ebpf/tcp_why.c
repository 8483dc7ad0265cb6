/* SPDX-License-Identifier: GPL-2.0-only */
/* The same as tcp.c, with what the kernel did to the segments of attempts to connect. */
#include "tcp.h"

#include "signals.h"
#include "tcp_all.h"
