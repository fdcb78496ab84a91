//! The Referral gateway: configuration, gRPC and HTTP services, decision log, metrics and the command line.
