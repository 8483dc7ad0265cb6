/* SPDX-License-Identifier: GPL-2.0-only */
/* The two ends of a TCP connection. Included after address.h and struct event, which has the fields that are set here. */

/* The fields of an event that are read from a socket, or from a request for one; its own port is 0 until it is chosen. */
static __always_inline void read_socket(struct event *event, struct sock_common *from)
{
	struct sock_common common;

	bpf_probe_read_kernel(&common, sizeof(common), from);
	event->netns = READ(common.skc_net.net, ns.inum);
	event->dport = NTOHS(common.skc_dport);
	event->sport = common.skc_num;
	event->version = set_address(event->daddr, common.skc_family, &common.skc_daddr, &common.skc_v6_daddr);
	if (event->version == 4) {
		__builtin_memcpy(event->saddr, &common.skc_rcv_saddr, 4);
		return;
	}
	__builtin_memcpy(event->saddr, &common.skc_v6_rcv_saddr, 16);
	if (is_link_local(event->daddr) || is_link_local(event->saddr))
		read_device(event->zone, common.skc_net.net, common.skc_bound_dev_if);
}
