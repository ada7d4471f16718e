# Runs on every host of a TPU slice, behind the settings that launch/tpu_vm.py writes above:
#   NAME, PROJECT, IMAGE, INSTALL, STOPPED, RESTARTS and the lists BUCKETS, SECRETS, SETTINGS, COMMAND.
# Use: bash FILE setup | start | stop | status | logs LINES [follow]

state=$HOME/.vr_jax/$NAME
log=$state/log
venv=$HOME/.vr_jax/environment
# Seconds before a restart. A run that saved has stopped on all hosts at once. After a crash the others
# notice it within JAX's 100 s; until then the first one would send this host away.
pause_saved=${VR_JAX_PAUSE:-20}
pause_crashed=${VR_JAX_PAUSE:-120}
# Seconds that a container has to save before it is killed: more than vr_jax.parallel.preemption.GRACE.
grace=30
mkdir -p "$state"

say() { echo "$(hostname): $*"; }

# Buckets become directories, and the image or the package is fetched. Before `start`, on all hosts. Where
# a run is at work it does nothing, so that this one stays as it is, whatever comes of the next.
setup() {
  local bucket
  rm -f "$state/ready"
  if is_running; then
    say "is running already (process $(cat "$state/pid")); sets up nothing"
    return
  fi
  for bucket in ${BUCKETS[@]+"${BUCKETS[@]}"}; do
    mountpoint -q "/gcs/$bucket" && continue
    command -v gcsfuse >/dev/null || sudo apt-get install --yes --quiet gcsfuse >>"$log" 2>&1 || {
      say "gcsfuse is not installed, and apt does not know it; see Google's page on Cloud Storage FUSE"
      return 1
    }
    sudo mkdir -p "/gcs/$bucket" &&
      sudo gcsfuse -o allow_other --uid="$(id -u)" --gid="$(id -g)" --implicit-dirs \
        --metadata-cache-ttl-secs=0 "$bucket" "/gcs/$bucket" >>"$log" 2>&1 || {
      say "gs://$bucket can't be mounted; may the machines' service account use it? $(tail -n 1 "$log")"
      return 1
    }
  done
  if [ -n "$IMAGE" ]; then
    case ${IMAGE%%/*} in
      *.pkg.dev | gcr.io | *.gcr.io) sudo gcloud auth configure-docker "${IMAGE%%/*}" --quiet >>"$log" 2>&1 ;;
    esac
    sudo docker pull --quiet "$IMAGE"
  else
    # The system's Python is older than vr-jax needs.
    python3 -m pip install --quiet --user uv &&
      { [ -x "$venv/bin/python" ] || python3 -m uv venv --quiet --python=3.12 "$venv"; } &&
      python3 -m uv pip install --quiet --python="$venv/bin/python" "$INSTALL"
  fi || {
    say "the software could not be installed"
    return 1
  }
  mark_time >"$state/ready"
  say "is ready"
}

# A process of this script, not another that got its number after a reboot.
is_running() {
  [ -e "$state/pid" ] && [ ! -e "$state/ended" ] &&
    [[ $(tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$state/pid")/cmdline") == *"$0 loop"* ]]
} 2>/dev/null

# When the mark of the last run was written; nothing if there is none.
mark_time() { stat -c %y "$STOPPED" 2>/dev/null || true; }

start() {
  if is_running; then
    say "is running already (process $(cat "$state/pid")); wait for its end, or end it on all hosts: bash $0 stop"
    return 1
  fi
  if [ ! -e "$state/ready" ]; then
    say "is not ready, so it starts nothing: setup has failed, or met a run that has ended since"
    return 1
  fi
  local pid holders=
  for pid in $(sudo lsof -t /dev/vfio/[0-9]* /dev/accel[0-9]* 2>/dev/null); do
    case $(ps -o comm= -p "$pid") in # an agent of Google's that looks at the chips is none
      python* | ipython* | jupyter* | vr-jax*) holders+=" $pid" ;;
    esac
  done
  if [ -n "$holders" ]; then
    say "its TPU is held by process$holders; end that (sudo kill -9$holders), or delete the slice and create it again"
    return 1
  fi
  # The last run's; not that of another host whose part of this run has ended by now.
  [ ! -s "$state/ready" ] || [ "$(mark_time)" != "$(cat "$state/ready")" ] || rm -f "$STOPPED"
  rm -f "$state/ended" "$state/restarts"
  setsid nohup bash "$0" loop >>"$log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  say "started (process $!)"
}

# A run that is told to stop saves the step first.
stop() {
  is_running && kill -TERM "$(cat "$state/pid")" && say "is told to stop"
}

# Tells the run to stop, and so does a machine that shuts down. Containers belong to root.
pass_on() {
  told=1 interrupted=1
  kill -TERM "$child" 2>/dev/null
  [ -z "$IMAGE" ] || sudo docker stop -t "$grace" "$NAME" >/dev/null 2>&1 &
}

# Waits for the child, also if the signal comes meanwhile.
wait_for_child() {
  local code
  interrupted=1
  while [ -n "$interrupted" ]; do
    interrupted=
    wait "$child"
    code=$?
  done
  return "$code"
}

# Runs the command until it is done, its input is wrong (2), it diverges (3), it is told to stop, or
# no restarts are left. A host that ends for good says so in the bucket: the others would wait for it
# in vain.
loop() {
  local code restarts=0 told= interrupted= child= why
  trap pass_on TERM
  while :; do
    run_once "$restarts" &
    child=$!
    wait_for_child
    code=$?
    why="ended with $code"
    say "vr-jax $why after $restarts restarts"
    case $code in 0 | 2 | 3) break ;; esac
    if [ -z "$told" ]; then
      if [ "$code" = 75 ]; then sleep "$pause_saved" & else sleep "$pause_crashed" & fi
      child=$! # a signal ends it
      wait_for_child
    fi
    if [ -n "$told" ]; then
      why="was told to stop"
    elif [ -e "$STOPPED" ]; then
      why=$(cat "$STOPPED")
    elif [ "$restarts" -ge "$RESTARTS" ]; then
      why="$RESTARTS restarts are used up"
    else
      restarts=$((restarts + 1))
      echo "$restarts" >"$state/restarts"
      continue
    fi
    say "does not start again: $why"
    break
  done
  [ -e "$STOPPED" ] || { mkdir -p "$(dirname "$STOPPED")" && say "$why" >"$STOPPED"; }
  echo "$code" >"$state/ended"
  return "$code"
}

# Prints the value of a secret. The service may fail for a moment, in which a run that goes on must not
# end: it fails with 1 then, and is tried again. At the first start it is wrong input.
read_secret() {
  local try
  for try in 1 2 3; do
    gcloud secrets versions access latest --secret="$1" --project="$PROJECT" && return
    [ "$try" = 3 ] || sleep "${VR_JAX_PAUSE:-5}"
  done
  say "the secret $1 can't be read; the machines' service account needs roles/secretmanager.secretAccessor" >&2
  [ "$2" -gt 0 ] && return 1 || return 2
}

# To be run beside (&): its shell becomes the run, and secrets are in no other process's environment.
# $1: restarts so far.
run_once() {
  names=()
  for pair in ${SECRETS[@]+"${SECRETS[@]}"}; do
    value=$(read_secret "${pair#*=}" "$1") || exit
    export "${pair%%=*}=$value"
    names+=("${pair%%=*}")
  done
  for pair in ${SETTINGS[@]+"${SETTINGS[@]}"}; do
    export "${pair?}"
    names+=("${pair%%=*}")
  done
  if [ -z "$IMAGE" ]; then
    PATH="$venv/bin:$PATH" exec "${COMMAND[@]}"
  fi
  keep=$(IFS=,; echo "${names[*]-}")
  # Compiled programs and copies of the train state outlive the container: on the host's disk.
  mkdir -p "$state/cache"
  passed=()
  for name in ${names[@]+"${names[@]}"}; do passed+=(--env "$name"); done
  sudo docker rm --force "$NAME" >/dev/null 2>&1 # of a run that was killed
  exec sudo ${keep:+"--preserve-env=$keep"} docker run --rm --name="$NAME" --privileged --net=host \
    --stop-timeout="$grace" --volume=/gcs:/gcs --volume="$state/cache:/cache" --env XDG_CACHE_HOME=/cache \
    ${passed[@]+"${passed[@]}"} "$IMAGE" "${COMMAND[@]}"
}

status() {
  if is_running; then
    say "is running (process $(cat "$state/pid"), restarts: $(cat "$state/restarts" 2>/dev/null || echo 0))"
  elif [ -e "$state/ended" ]; then
    say "ended with exit code $(cat "$state/ended")"
  elif [ -e "$state/pid" ]; then
    say "was interrupted; resume starts it again"
  else
    say "has not started"
  fi
  [ ! -e "$log" ] || tail -n 1 "$log"
}

logs() { tail -n "$1" ${2:+-F} "$log"; }

"$@"; exit # on one line, for the file may be replaced while this runs
