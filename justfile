# Everyday commands. CONTRIBUTING.md names each plain command beside its recipe, since `just` is optional.

# List these commands
_default:
    @just --list --unsorted

# Everything that must hold before a change lands
ci:
    .ci/run

# Formatting and lints, as .ci/run has them
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- --deny warnings

# All tests, or those whose names contain a word
test *words:
    cargo test --workspace --locked {{ words }}

# What the documents say: crate graph, dependencies, names and commands
documents:
    cargo test --workspace --locked --test architecture --test contributing --test supply

# Seeds of the simulation
sim seeds="1000":
    cargo run --release --locked --quiet -p votestream-sim -- --seeds {{ seeds }}

# One seed of the simulation again, with every event
replay seed:
    cargo run --release --locked --quiet -p votestream-sim -- --seed {{ seed }} --trace

# Break each rule of the protocol: every break must be seen within the seeds
mutations seeds="1000":
    cargo run --release --locked --quiet -p votestream-sim -- --mutations --seeds {{ seeds }}

# Fuzz every place where bytes of strangers come in, for some seconds each
fuzz seconds="10":
    tests/fuzz/run.sh {{ seconds }}

# Kill processes with -9 at random times
crash rounds="200":
    VOTESTREAM_CRASH_ROUNDS={{ rounds }} cargo test --release --locked -p votestream-e2e --test crash -- --nocapture

# Cut the power of the disk at random moments: needs root and /dev/fuse
power rounds="300":
    VOTESTREAM_POWER_ROUNDS={{ rounds }} cargo test --locked -p votestream-e2e --test power -- --nocapture

# Hostile clients at a real process
hostile:
    cargo test --locked -p votestream-e2e --test hostile

# A part of the benchmarks, or all of them
bench part="all" *options:
    cargo run --release --locked -p votestream-bench -- {{ part }} {{ options }}

# All benchmarks into bench/report, and whether the report is whole
report:
    cargo run --release --locked -p votestream-bench -- all --out bench/report
    bench/check.sh bench/report

# The checks of the CDK app that need no container runtime
deploy:
    deploy/check.sh --quick

# Lint of the .proto files: needs npx
proto:
    npx --yes @bufbuild/buf@1 lint proto

# The stack on this machine
up *options:
    cargo run --release --locked -- up {{ options }}

# A million votes through a stack of its own, and whether the result is exact
demo *options:
    cargo run --release --locked -- demo {{ options }}

# Stand-ins for Kinesis and DynamoDB on this machine
dev-aws:
    cargo run --release --locked --features dev-aws -- dev-aws
