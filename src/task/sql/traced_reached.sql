update convoke.trace_export set seq = $1 where seq < $1
