/* SPDX-License-Identifier: GPL-2.0-only */
/* The two ends of a TCP connection. Included after device.h and struct event, which has the fields that are set here. */
/* An IPv4-mapped IPv6 address (::ffff:a.b.c.d) is IPv4 on the wire. */
static __always_inline int is_mapped(const void *address)
{
	const u32 *word = address;

	return !word[0] && !word[1] && word[2] == __builtin_bswap32(0xffff);
}

/* The fields of an event that are read from a socket, or from a request for one; its own port is 0 until it is chosen. */
static __always_inline void read_socket(struct event *event, struct sock_common *from)
{
	struct sock_common common;

	bpf_probe_read_kernel(&common, sizeof(common), from);
	event->netns = READ(common.skc_net.net, ns.inum);
	event->dport = NTOHS(common.skc_dport);
	event->sport = common.skc_num;
	if (common.skc_family == AF_INET6 && !is_mapped(&common.skc_v6_daddr)) {
		event->version = 6;
		__builtin_memcpy(event->saddr, &common.skc_v6_rcv_saddr, 16);
		__builtin_memcpy(event->daddr, &common.skc_v6_daddr, 16);
		if (is_link_local(event->daddr) || is_link_local(event->saddr))
			read_device(event->zone, common.skc_net.net, common.skc_bound_dev_if);
	} else {
		event->version = 4;
		__builtin_memcpy(event->saddr, &common.skc_rcv_saddr, 4);
		__builtin_memcpy(event->daddr, &common.skc_daddr, 4);
	}
}
