//! End-to-end tests: the real binary, real servers, over real sockets.
