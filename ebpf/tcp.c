/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP connects, accepts and closes. */
#include "tcp.h"

#include "no_signals.h"
#include "tcp_all.h"
