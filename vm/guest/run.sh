# Read by vm-run, in the virtual machine, as root: the tests with the arguments of /arguments, one a line, or a shell.
# What is in /results goes back to the host through the last disk.
export PATH="/venv/bin:$PATH" LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 LIGHTERMAN_TEST_PATIENCE=6
cd /checkout || exit

if grep -qw vm.shell /proc/cmdline; then
    echo "the checkout is in $PWD, its Python is $(command -v python); exit ends the machine"
    setsid --ctty bash --norc -i </dev/ttyS0 >/dev/ttyS0 2>&1
    exit
fi

mkdir /results
vm/guest/facts.sh >/results/facts
set --
while IFS= read -r argument; do set -- "$@" "$argument"; done </arguments
# Through a pipe: on a terminal pytest draws over its lines.
mkfifo /run/shown
cat /run/shown &
shown=$!
# Interrupted, pytest still writes what it has done; 124 says so, and 137 that it had to be killed.
timeout --foreground --signal=INT --kill-after=120 "$(cat /bound)" \
    python -u -m pytest --junitxml=/results/junit.xml "$@" </dev/null >/run/shown 2>&1
echo $? >/results/exit
dmesg >/results/dmesg
tar -cf /dev/nvme0n3 -C /results .
sync
# Only now: what the tests have left behind may hold the pipe open.
timeout 10 tail -s 0.1 --pid="$shown" -f /dev/null
