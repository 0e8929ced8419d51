# Runs a server whose whole process group ends when standard input does, however the daemon ended: a server that
# ignores the end of its input must not outlive the daemon. A trap, and not an ignored signal: commands inherit that.
trap : TERM
{
    trap : TERM
    command -p cat
    # The end of its input asks the server to exit.
    exec >&-
    command -p sleep 2
    kill -TERM 0
    command -p sleep 2
    kill -KILL 0
} | {
    trap : TERM
    "$@"
    # Descendants that the server left would keep the pipes open.
    kill -KILL 0
}
