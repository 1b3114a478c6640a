"""The default seccomp profile, in the terms of Docker's profile format (which `resolve` reads).

Docker's posture: whatever is not named is refused with EPERM; what needs a capability is allowed only with it. The
calls are ordered here by what they are for. Two things are stricter than Docker's: `socket` is compared in its low 32
bits (the kernel takes an int, so that 0x1_0000_0028 is AF_VSOCK to it and is not 40 to a comparison of 64 bits), and
io_uring is left out, as in Docker since version 25.
"""

from __future__ import annotations

from typing import Any

__all__ = ["DEFAULT_PROFILE"]

_FILES = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
    flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64
    ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at
    newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat
    readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink
    symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat
    utimensat_time64 utimes vmsplice write writev
"""
_ATTRIBUTES = """
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
_MEMORY = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
_WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect pipe pipe2 poll ppoll ppoll_time64
    pselect6 pselect6_time64 select signalfd signalfd4
"""
_PROCESSES = """
    alarm capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getpgid getpgrp
    getpid getppid getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set kill pause pidfd_open
    pidfd_send_signal prctl prlimit64 process_mrelease restart_syscall rseq sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid sysinfo tgkill times tkill
    ugetrlimit uname uretprobe vfork wait4 waitid waitpid
"""
_SIGNALS = """
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn
"""
_LOCKS = "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake"
_IDENTITY = """
    getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
    getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
"""
_TIME = """
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_NETWORK = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""
_SHARING = """
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
_OWN_CONFINEMENT = "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp"
_LOOKING = "getrandom listmount riscv_hwprobe statmount"

_ALWAYS = " ".join(
    (
        _FILES,
        _ATTRIBUTES,
        _MEMORY,
        _WAITING,
        _PROCESSES,
        _SIGNALS,
        _LOCKS,
        _IDENTITY,
        _TIME,
        _NETWORK,
        _SHARING,
        _OWN_CONFINEMENT,
        _LOOKING,
    )
)

_WITH_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}

_ON_ARCHITECTURE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("amd64", "x32"), "arch_prctl"),
    (("amd64", "x32", "x86"), "modify_ldt"),
    (("arm", "arm64"), "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    (("ppc64le",), "swapcontext sync_file_range2"),
    (("riscv64",), "riscv_flush_icache"),
    (("s390", "s390x"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
)

# Linux, UNAME26 (0x20000), PER_LINUX32 (8), both, and "tell me what it is".
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# clone(2) flags that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

# Address families 0 to 47 without AF_VSOCK (40: it knows no network namespace, so it reaches the host's hypervisor),
# as (mask, value) pairs over the low 32 bits.
_SOCKET_FAMILIES = (
    (0xFFFFFFE0, 0),
    (0xFFFFFFF8, 32),
    (0xFFFFFFFF, 41),
    (0xFFFFFFFE, 42),
    (0xFFFFFFFC, 44),
)

_ENOSYS = 38


def _allow(names: str, **more: Any) -> dict[str, Any]:
    return {"names": sorted(set(names.split())), "action": "SCMP_ACT_ALLOW", **more}


def _masked(index: int, mask: int, value: int) -> list[dict[str, Any]]:
    return [{"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]


def _profile() -> dict[str, Any]:
    rules = [
        _allow(_ALWAYS),
        # Before 4.8 a tracer could change a call after the filter had seen it.
        _allow("process_vm_readv process_vm_writev ptrace", includes={"minKernel": "4.8"}),
    ]
    rules += [_allow("socket", args=_masked(0, mask, family)) for mask, family in _SOCKET_FAMILIES]
    rules += [
        _allow("personality", args=[{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]) for value in _PERSONALITIES
    ]
    rules += [_allow(names, includes={"arches": list(arches)}) for arches, names in _ON_ARCHITECTURE]
    rules += [_allow(names, includes={"caps": [cap]}) for cap, names in _WITH_CAPABILITY.items()]
    no_admin = {"caps": ["CAP_SYS_ADMIN"]}
    rules += [
        _allow(
            "clone",
            args=_masked(0, _NEW_NAMESPACES, 0),
            excludes={**no_admin, "arches": ["s390", "s390x"]},
        ),
        # s390 has the flags second.
        _allow(
            "clone",
            args=_masked(1, _NEW_NAMESPACES, 0),
            includes={"arches": ["s390", "s390x"]},
            excludes=no_admin,
        ),
        # Its flags lie in memory, where a filter can't look; with ENOSYS the C libraries fall back to clone.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS, "excludes": no_admin},
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
            {"architecture": "SCMP_ARCH_PPC64LE", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


DEFAULT_PROFILE: dict[str, Any] = _profile()
