//! How the SDK reaches AWS.
