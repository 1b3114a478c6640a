"""Cgroups of both versions behind one face: nobody outside this package asks which version a host has."""

from lighterman.runtimes.oci.cgroups.cgroup import Cgroup
from lighterman.runtimes.oci.cgroups.host import (
    PARENT,
    CgroupHost,
    Hierarchy,
    cgroup_host,
    group_of,
    group_parent,
    has_namespaces,
)
from lighterman.runtimes.oci.cgroups.oom import OomEar, OomEars
from lighterman.runtimes.oci.cgroups.options import MountOptions
from lighterman.runtimes.oci.cgroups.poke import Poke
from lighterman.runtimes.oci.cgroups.resources import check_resources, resources_to_oci, set_rates, without_rates

__all__ = [
    "PARENT",
    "Cgroup",
    "CgroupHost",
    "Hierarchy",
    "MountOptions",
    "OomEar",
    "OomEars",
    "Poke",
    "cgroup_host",
    "check_resources",
    "group_of",
    "group_parent",
    "has_namespaces",
    "resources_to_oci",
    "set_rates",
    "without_rates",
]
