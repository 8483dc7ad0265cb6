/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs share: reading kernel memory, the rings, the counters of what was lost, the
 * filters, and who the current task is.
 *
 * The loader reads these lines, which are nothing to the compiler:
 *   KERNEL_STRUCT(name, field, ...)	declares struct name as this kernel lays it out, with these fields
 *   OPTIONAL_STRUCT(name, field, ...)	the same of one that this kernel may not have
 *   KERNEL_ENUM(name, value, ...)	defines KERNEL_value where this kernel has it
 *   KERNEL_CASES(name, prefix, value, ...)	defines CASES_name: for those of enum name that this kernel has,
 *				`case prefix##value: return value;`; and HAVE_enum_name, 0 where it has none
 *   KERNEL_TRACEPOINT(name, ...)	defines HAVE_tracepoint_name, 0 where this kernel has none, and ARGUMENTS_tracepoint_name,
 *				how many arguments it has
 *   OPTION(NAME, value)		defines NAME as this value, unless user space gives another
 *   KERNEL_FUNCTION(name, ...)	defines KERNEL_FUNCTION_name, 0 where this kernel has none
 *   OPTIONAL_HOOK(function, "...")	a hook that may be refused, and what is not seen then
 *   SIGNAL_HOOK(function)	a hook whose misses lose no event
 *   OWNER_IS_CURRENT(event)		a hook outside of system calls whose program reads the current task only if that is the owner
 *   LOSS(NAME, "...")		a cause of losses for count_lost(), and how it is reported; one without words is not
 * A function called raw_tp__NAME is attached to that raw tracepoint, tp__CATEGORY__NAME to that
 * tracepoint, fexit__NAME to the end of the kernel's function NAME, fexit__sys_NAME of that system call of 64-bit tasks,
 * cgroup_skb__ingress, cgroup_skb__egress and others of cgroups (contract.py) to the root of their version 2
 * hierarchy: there the argument is the kernel's struct (sk_buff, sock), to be read only, and any other return value than
 * 1 is refused.
 * A tracepoint's function of which the options leave only `return 0` is not attached.
 */
#define KERNEL_STRUCT(...)
#define OPTIONAL_STRUCT(...)
#define KERNEL_ENUM(...)
#define KERNEL_CASES(...)
#define KERNEL_TRACEPOINT(...)
#define KERNEL_FUNCTION(...)
#define OPTION(...)
#define OPTIONAL_HOOK(...)
#define SIGNAL_HOOK(...)
#define LOSS(...)
#define OWNER_IS_CURRENT(...)

#define ANY -1
OPTION(FILTER_PID, ANY)
OPTION(FILTER_UID, ANY)
OPTION(CGROUP_LEGACY, ANY)	/* the number of a controller whose hierarchy is of version 1 */

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262

/*
 * Where BCC does not find these names in /proc/kallsyms, it makes macros of them that take bpf_probe_read() instead,
 * which reads the kernel's memory for a process that passes a kernel address.
 */
#undef bpf_probe_read_kernel
#undef bpf_probe_read_kernel_str
#undef bpf_probe_read_user
#undef bpf_probe_read_user_str

#define READ(p, field) ({ typeof((p)->field) _v; bpf_probe_read_kernel(&_v, sizeof(_v), &(p)->field); _v; })
/*
 * The current task, and the fields of it and of what its pointers point to: without a call each since 5.11
 * (3ca1032ab7ab "bpf: Implement get_current_task_btf and RET_PTR_TO_BTF_ID").
 * BCC before 0.25 ends where what is called is no declared function or variable.
 */
#ifdef KERNEL_BPF_FUNC_get_current_task_btf
static struct task_struct *(*current_task_btf)(void) = (void *)KERNEL_BPF_FUNC_get_current_task_btf;
#define CURRENT_TASK() current_task_btf()
#define LOAD(p, field) (p)->field
#define LOAD_COMM(to, p) (*(struct halves *)(to) = *(struct halves *)(p)->comm)
#else
#define CURRENT_TASK() ((struct task_struct *)bpf_get_current_task())
#define LOAD(p, field) READ(p, field)
#define LOAD_COMM(to, p) bpf_probe_read_kernel(to, sizeof(struct halves), (p)->comm)
#endif
struct halves { u64 half[2]; };
#define NTOHS(x) __builtin_bswap16(x)
#define BITS(p, offset, width) ({ u8 _b; bpf_probe_read_kernel(&_b, 1, (u8 *)(p) + (offset) / 8); _b >> (offset) % 8 & ((1 << (width)) - 1); })

/* System calls; sendto() and sendmsg() connect too, with MSG_FASTOPEN. And where their number and arguments are. */
#ifdef HAVE_pt_regs_orig_ax /* x86-64 */
enum { NR_CONNECT = 42, NR_ACCEPT = 43, NR_SENDTO = 44, NR_SENDMSG = 46, NR_BIND = 49, NR_ACCEPT4 = 288 };
#define CALL_NUMBER orig_ax
#define CALL_FIRST di
#define CALL_SECOND si
#define IS_32_BIT(task) (LOAD(task, thread_info.status) & 2) /* TS_COMPAT */
#else /* include/uapi/asm-generic/unistd.h */
enum { NR_BIND = 200, NR_ACCEPT = 202, NR_CONNECT = 203, NR_SENDTO = 206, NR_SENDMSG = 211, NR_ACCEPT4 = 242 };
#define CALL_NUMBER syscallno
#define CALL_FIRST orig_x0
#define CALL_SECOND regs[1]
#define IS_32_BIT(task) (LOAD(task, thread_info.flags) >> 22 & 1) /* TIF_32BIT */
#endif

KERNEL_STRUCT(ns_common, inum)
KERNEL_STRUCT(net, ns)
KERNEL_STRUCT(mnt_namespace, ns)
KERNEL_STRUCT(nsproxy, mnt_ns)
KERNEL_STRUCT(kernfs_node, id, name, parent, __parent, mode, iattr)
KERNEL_STRUCT(kernfs_iattrs, ia_uid)
KERNEL_STRUCT(cgroup, kn)
KERNEL_STRUCT(cgroup_subsys_state, cgroup)
KERNEL_STRUCT(css_set, dfl_cgrp, subsys)
KERNEL_STRUCT(file, private_data, f_inode)
KERNEL_STRUCT(inode, i_ino)
KERNEL_STRUCT(fdtable, fd, max_fds)
KERNEL_STRUCT(files_struct, fdt)
KERNEL_STRUCT(pt_regs, orig_ax, di, si, syscallno, orig_x0, regs)
KERNEL_STRUCT(thread_info, status, flags)
KERNEL_STRUCT(task_struct, thread_info, stack, nsproxy, files, cgroups, real_parent, group_leader, cred, tgid, pid, comm)
KERNEL_STRUCT(cred, uid, gid)
KERNEL_STRUCT(sock_common, skc_family, skc_state, skc_dport, skc_num, skc_daddr, skc_rcv_saddr, skc_v6_daddr, skc_v6_rcv_saddr, skc_net)
KERNEL_STRUCT(sock, __sk_common, sk_err, sk_protocol, sk_lock, sk_socket, sk_cgrp_data)
KERNEL_STRUCT(sock_cgroup_data, cgroup, val)
KERNEL_STRUCT(inet_sock, inet_sport, inet_saddr)
KERNEL_STRUCT(socket, sk, state, file)
KERNEL_ENUM(bpf_func_id, BPF_FUNC_get_current_task_btf, BPF_FUNC_task_pt_regs)
KERNEL_ENUM(cgroup_subsys_id, memory_cgrp_id, pids_cgrp_id, cpu_cgrp_id, cpuset_cgrp_id)

#define CGROUP_LEVELS 24
#define CGROUP_NAME 256		/* NAME_MAX and the end */
#define CGROUP_TEXT 4096

struct owner {
	u64 cgroup;
	u32 pid, tid, uid, gid;
	u32 parent_pid, mntns;
	char comm[16], pcomm[16], parent_comm[16]; /* the thread's, the process's, its parent's */
};

/*
 * The path of a cgroup, sent once, before any event of that cgroup; only the part of `text` in use. Each
 * level, leaf first, is a letter and a name that ends in a zero byte: `r` if only root can make cgroups in
 * it, `u` if another user can. `+` begins the path in the version 1 hierarchy; `!` stands for levels that
 * there was no room for.
 */
struct cgroup_path {
	u64 cgroup;
	u32 busy, length;
	char text[CGROUP_TEXT + 1 + CGROUP_NAME];
};

/* What user space has decided about a cgroup's events; until then they pass. FORGET: see decide(). */
enum verdict { UNDECIDED, KEEP, DROP, FORGET };

LOSS(LOST_RING, "the ring buffer was full")

/* Submitted without waking the reader, which would cost more than the event: it looks every 50 ms. */
BPF_RINGBUF_OUTPUT(events, EVENTS_PAGES);
BPF_RINGBUF_OUTPUT(cgroup_paths, PATHS_PAGES);
BPF_TABLE("lru_hash", u64, u32, cgroups, 16384);
BPF_PERCPU_ARRAY(path_buffer, struct cgroup_path, 1);
/*
 * User space maps it (1 << 10 is BPF_F_MMAPABLE). Reading or writing an element by bpf() keeps every tp__
 * program from running on that CPU meanwhile, however long it is preempted: bpf_disable_instrumentation().
 */
BPF_F_TABLE("array", u32, u64, lost, LOSSES, 1 << 10);

/*
 * Called by user space, which writes its verdict so, for the same reason. What user space forgets is
 * forgotten here too, so that the path is sent again with the next event.
 */
int decide(struct { u64 cgroup, verdict; } *ctx)
{
	u64 cgroup = ctx->cgroup;
	u32 verdict = ctx->verdict;

	if (verdict == FORGET)
		return cgroups.delete(&cgroup);
	return cgroups.update(&cgroup, &verdict);
}

static __always_inline void count_lost(u32 cause)
{
	u64 *n = lost.lookup(&cause);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline struct css_set *current_css_set(void)
{
	struct task_struct *task = CURRENT_TASK();

	return LOAD(task, cgroups);
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
#ifdef HAVE_kernfs_node___parent
	return (void *)READ(node, __parent); /* renamed in 6.15: 633488947ef6 */
#else
	return (void *)READ(node, parent);
#endif
}

/* Whether only root can make cgroups in this one. A cgroup that was never given away has no attributes. */
static __always_inline int is_roots(struct kernfs_node *node)
{
	struct kernfs_iattrs *attributes = (void *)READ(node, iattr);

	if (READ(node, mode) & 0022)
		return 0;
	return !attributes || READ(attributes, ia_uid.val) == 0;
}

static __always_inline void append_mark(struct cgroup_path *path, char mark)
{
	u32 at = path->length & (CGROUP_TEXT - 1);

	path->text[at] = mark;
	path->text[at + 1] = 0;
	path->length = at + 2;
}

static __always_inline void append_path(struct cgroup_path *path, struct kernfs_node *node)
{
#pragma nounroll
	for (int level = 0; level < CGROUP_LEVELS; level++) {
		u64 at = path->length;
		const void *name;
		int length;
		char who;

		if (!node)
			return;
		if (at > CGROUP_TEXT - CGROUP_NAME - 16)
			break;
		name = (void *)READ(node, name);
		who = is_roots(node) ? 'r' : 'u';
		/* Before 5.11 the verifier forgets a number's bounds on the stack: bounded again where it is used. */
		asm volatile("" : "+r"(at));
		at &= CGROUP_TEXT - 1;
		path->text[at] = who;
		length = bpf_probe_read_kernel_str(path->text + at + 1, CGROUP_NAME, name);
		if (length < 0)
			break;
		path->length = at + 1 + (length & (2 * CGROUP_NAME - 1));
		node = parent_of(node);
	}
	if (node)
		append_mark(path, '!');
}

/* What cannot be sent now is tried again with the next event; meanwhile user space looks the path up by the id. */
static __always_inline void send_cgroup_path(u64 id, struct cgroup *unified, struct cgroup *legacy)
{
	u32 zero = 0, verdict = UNDECIDED;
	struct cgroup_path *path = path_buffer.lookup(&zero);

	if (!path || path->busy)
		return; /* this program was interrupted while it wrote here */
	path->busy = 1;
	path->cgroup = id;
	path->length = 0;
	append_path(path, (void *)READ(unified, kn));
	if (CGROUP_LEGACY != ANY && legacy) {
		append_mark(path, '+');
		append_path(path, (void *)READ(legacy, kn));
	}
	cgroups.insert(&id, &verdict); /* before user space can write its verdict */
	if (cgroup_paths.ringbuf_output(path, __builtin_offsetof(struct cgroup_path, text) + (path->length & (CGROUP_TEXT - 1)), BPF_RB_NO_WAKEUP))
		cgroups.delete(&id);
	path->busy = 0;
}

/*
 * Marks of ids where version 1 hierarchies are in use too: the upper half is the id in one of them, or is
 * not known. Ids have 32 bits until 2^32 cgroups and their files were made.
 */
#define LEGACY_KNOWN (1ull << 63)
#define LEGACY_UNKNOWN (1ull << 62)

/* Whether the events of the current task's cgroup are wanted; says which that is. */
static __always_inline int current_cgroup_wanted(u64 *cgroup)
{
	struct cgroup *legacy = NULL;
	u32 *verdict;

	*cgroup = bpf_get_current_cgroup_id();
	if (CGROUP_LEGACY != ANY) {
		struct css_set *set = current_css_set();
		struct cgroup_subsys_state *css = LOAD(set, subsys[CGROUP_LEGACY]);
		struct cgroup *other = (void *)LOAD(css, cgroup);
		struct kernfs_node *node = (void *)LOAD(other, kn);
		u64 id = LOAD(node, id);

		/* A runtime may put its containers into only one of the two; 1 is a hierarchy's root. */
		if (id != 1) {
			legacy = other;
			*cgroup = LEGACY_KNOWN | (id & 0x7fffffff) << 32 | (u32)*cgroup;
		}
	}
	verdict = cgroups.lookup(cgroup);
	if (verdict)
		return *verdict != DROP;
	send_cgroup_path(*cgroup, (void *)READ(current_css_set(), dfl_cgrp), legacy);
	return 1;
}

/* Whether the current task's events are wanted; says which cgroup it is in. */
static __always_inline int current_wanted(u64 *cgroup)
{
	if (FILTER_PID != ANY && bpf_get_current_pid_tgid() >> 32 != FILTER_PID)
		return 0;
	if (FILTER_UID != ANY && (u32)bpf_get_current_uid_gid() != FILTER_UID)
		return 0;
	return current_cgroup_wanted(cgroup);
}

/* The same of a socket's own cgroup, in which it or its listener was made: for where the current task is not its owner. */
static __always_inline int socket_wanted(struct sock *sk, u64 *cgroup)
{
#ifdef HAVE_sock_cgroup_data_cgroup
	struct cgroup *unified = (void *)READ(sk, sk_cgrp_data.cgroup);
#else /* before 5.15 (8520e224f547): a pointer unless it is odd, and a bit of its own */
	u64 value = READ(sk, sk_cgrp_data.val);
	struct cgroup *unified = value & 1 ? NULL : (void *)(value & ~3ull);
#endif
	struct kernfs_node *node;
	u32 *verdict;

	*cgroup = 0;
	if (!unified)
		return 1;
	node = (void *)READ(unified, kn);
	*cgroup = READ(node, id);
	if (CGROUP_LEGACY != ANY)
		*cgroup = LEGACY_UNKNOWN | (u32)*cgroup;
	verdict = cgroups.lookup(cgroup);
	if (verdict)
		return *verdict != DROP;
	send_cgroup_path(*cgroup, unified, NULL);
	return 1;
}

/* Only where the current task is the caller. */
static __always_inline void read_owner(struct owner *owner, u64 cgroup)
{
	struct task_struct *task = CURRENT_TASK(), *parent = LOAD(task, real_parent), *leader = LOAD(task, group_leader);
	struct nsproxy *namespaces = LOAD(task, nsproxy);
	struct mnt_namespace *mntns = LOAD(namespaces, mnt_ns);
	struct cred *cred = LOAD(task, cred);

	owner->cgroup = cgroup;
	owner->pid = LOAD(task, tgid);
	owner->tid = LOAD(task, pid);
	owner->uid = LOAD(cred, uid.val);
	owner->gid = LOAD(cred, gid.val);
	owner->mntns = LOAD(mntns, ns.inum);
	owner->parent_pid = LOAD(parent, tgid);
	LOAD_COMM(owner->comm, task);
	LOAD_COMM(owner->pcomm, leader);
	LOAD_COMM(owner->parent_comm, parent);
}

/* Copies the socket behind a descriptor of the current task; false if it is none. */
static __always_inline int current_socket(int fd, struct socket *socket)
{
	struct task_struct *task = CURRENT_TASK();
	struct files_struct *files = LOAD(task, files);
	struct fdtable *table = LOAD(files, fdt);
	struct file *file = NULL;

	if (fd < 0 || fd >= LOAD(table, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), (struct file **)LOAD(table, fd) + fd);
	if (!file)
		return 0;
	bpf_probe_read_kernel(socket, sizeof(*socket), READ(file, private_data));
	return (void *)socket->file == file; /* not every file's private data is a socket */
}

/* Identifies a socket among those at the same address; 0 if it has no descriptor. */
static __always_inline u64 inode_number(struct file *file)
{
	struct inode *inode = file ? (void *)READ(file, f_inode) : NULL;

	return inode ? READ(inode, i_ino) : 0;
}

/* The system call that the current task is in: its number, and its first two arguments. */
struct call { s32 number, fd; u64 address; };

#ifdef KERNEL_BPF_FUNC_task_pt_regs
static struct pt_regs *(*task_pt_regs)(struct task_struct *task) = (void *)KERNEL_BPF_FUNC_task_pt_regs;
#define REGISTER(regs, name) LOAD(regs, name)
#else /* before 5.15 (dd6e10fbd9fb): at the stack's end, which is 16 KiB on 64-bit machines */
#define task_pt_regs(task) ((struct pt_regs *)((void *)READ(task, stack) + 16384 - SIZE_pt_regs))
#define REGISTER(regs, name) READ(regs, name)
#endif

static __always_inline struct call current_call(void)
{
	struct task_struct *task = CURRENT_TASK();
	struct pt_regs *regs = task_pt_regs(task);
	struct call call;

	call.number = REGISTER(regs, CALL_NUMBER);
	call.fd = REGISTER(regs, CALL_FIRST);
	call.address = REGISTER(regs, CALL_SECOND);
	return call;
}

/* Arguments of the tracepoints on a system call's way out. */
struct exit_args { u64 common; int nr, pad; long ret; };

/* The number of the call that ends; -1 if it is a 32-bit one, which has other numbers, and no tracepoint of its own. */
static __always_inline s32 native_call(struct exit_args *ctx)
{
	struct task_struct *task = CURRENT_TASK();

	return IS_32_BIT(task) ? -1 : ctx->nr;
}
