"""One word for one thing: identifiers that were renamed do not come back with their old meaning."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import lbclient

ROOT = Path(lbclient.__file__).parent
RENAMED = {
    # new name: old names of the same thing
    "Engine": "Core Charges Guards core",
    "record_outcome, record_success, finish": "settle settles settled saw",
    "record_latency, mean_latency, baseline_latency": "took usual calm",
    "Outbox, pending, emit": "News news heard untold",
    "Attempt, Call, CallState": (
        "Sent SentAttempt Owner Hedged HedgedCall Waiter WaitingCall Last PreviousAttempt Runner "
        "RacingAttempt Finished FinishedAttempt Raced Control Closing Caller"
    ),
    "CallOptions": "Terms terms asked",
    "EndpointSet, EndpointSetUpdate": "Roster roster Change change",
    "WaitQueue, ConnectionInfo": "Line line",
    "Picker, PickContext": "Selection selection",
    "request_refresh, wait_until_resolved": "hurry unready",
    "release_later, deferred_releases, run_deferred": "forsake forsaken reap",
    "release_slot, transfer_slot": "step_aside passed_on",
    "untouched, success_is_noop": "pristine unmoved",
    "EndpointStatus, backing_off_until, ejected_until": "Standing standing rest_until out_until",
    "_dirty, _health_ignored, _updating, _recompute": "suspects blind torn look",
    "open_breakers, expedite_probes": "broken healed sooner",
    "pick_hedge, concurrent": "beside",
    "HedgeRace, losing, deadline_expired": "Race lost overtaken cut",
    "RetryState, RetryController, RetryRules": "Turn Turns turn turns Retries retries",
    "classifier, classify": "Judge judge",
    "AddressFilter, OptInRules": "Guard Guards guard guards",
    "Runtime, DiscoveryLimits, Policies": "Means means Bounds bounds Rules rules assembled",
    "ServiceSubscription, SubscriptionListener, Scheduler, PeriodicJob": (
        "Watch watch Subscriber subscriber Refresher refresher Job Companion companion"
    ),
    "LookupDeadline, AddressCache, DnsAnswer, RejectedRecord": (
        "Patience patience AddressBook Found found Refusal"
    ),
    "ParsedService, parse": "Said said reading",
    "CheckExecutor, HealthTally, RegisteredRecord, SigtermHook": (
        "Crew crew Pulse pulse pulses Presence presence Link link"
    ),
    "InstanceTransport, TransportPool, PerLoopTransports, needs_cleanup, is_idle, drain": (
        "Wire wire Wires wires Homes homes untidy quiet retire"
    ),
    "CustomTransport, transport_factory, Upstream": (
        "Sender sender Kept Foreign maker makers Place place"
    ),
    "ConnectionLease, KeepAlivePool, IdleStack, ConnectionMonitor, InstanceLiveness": (
        "Use Idle Shelf shelf Ear ear Liveness"
    ),
    "DeadlineTimeout, shield, poisons, is_corrupted": "Allowance allowance uncut spoils confused",
    "RequestCache, UrlCache, LazyCookies, ResponseStream, _compat": (
        "Drafts drafts Urls urls Jar jar Answer flavour"
    ),
    "detach_after_fork": "disown",
    "Metrics, NOOP_SPAN, minimal": "Counts counts SILENT plain",
    "OutcomeHistory, penalty, LatencyByLoad": "Memory memory doubt doubted Levels levels",
    "rng": "dice",
}
OTHER_MEANINGS = {
    # a word of the old names that means another thing here: the files where it does
    "allowance": "http/connections/http1.py",  # the whitespace that RFC 9110 allows
    "Answer": "endpoint/instance.py",  # public: what a resolver returns
    "asked": "discovery/dns/addresses.py http/connections/trio.py simulation/scenario.py",
    "broken": "http/connections/event_loop.py simulation/behaviour.py",  # by an error
    "change": "discovery/registration/dns_update.py discovery/registration/registration.py",
    "found": (  # the result of a search
        "cli/demo/dns_server.py discovery/dns/addresses.py discovery/dns/client.py "
        "discovery/file.py discovery/subscription.py http/connections/addresses.py "
        "http/connections/parsers.py"
    ),
    "heard": "endpoint/breaker.py",  # from an instance
    "Kept": "strategy/prequal.py",  # a load report
    "levels": "strategy/outcome_history.py",  # of load
    "line": "cli/demo/stage.py http/connections/http1.py http/connections/parsers.py",  # of text
    "look": (
        "http/connections/pool.py http/connections/transport_pool.py simulation/invariants.py "
        "strategy/consistent_hash.py strategy/weighted.py"
    ),
    "lost": (  # a stream, a lease, a request
        "http/connections/http2.py http/connections/pool.py http/connections/transport_pool.py "
        "simulation/invariants.py"
    ),
    "patience": (  # public: `CallOptions`, `FirstOf`; and seconds until something else happens
        "core/call.py core/picker.py core/pool.py core/waiting.py discovery/composite.py "
        "discovery/registration/sigterm.py http/request.py simulation/invariants.py "
        "simulation/scenario.py"
    ),
    "place": (  # in a list
        "core/pool.py discovery/composite.py discovery/dns/client.py discovery/dns/srv.py "
        "discovery/file.py endpoint/breaker.py simulation/report.py"
    ),
    "plain": "cli/demo/__init__.py",  # output without colours
    "retries": (  # attempts after the first, of calls and of connections
        "cli/demo/meter.py core/wait_queue.py http/options.py simulation/invariants.py "
        "telemetry/metrics.py"
    ),
    "rules": "resilience/retry.py",  # tenacity's
    "took": "simulation/server.py",  # seconds
    "turn": "strategy/weighted.py",  # of an endpoint
    "Turn": "strategy/weighted.py",
    "turns": "core/wait_queue.py discovery/dns/addresses.py strategy/weighted.py",  # of callers
    "Turns": "endpoint/breaker.py",
    "urls": "discovery/registry.py",  # a list of them
    "watch": (  # a body, an idle connection, `--watch`, a simulation; public: `Watcher.watch`
        "cli/demo/director.py cli/resolve.py discovery/pushed/source.py discovery/resolver.py "
        "discovery/subscription.py http/connections/pool.py http/request_body.py "
        "simulation/client.py simulation/run.py"
    ),
    "wire": "cli/demo/dns_server.py",  # DNS's wire format
}
ALIASES = {
    # public names of 0.1.0, which stay
    "judge": "balancer/balancer.py grpc/options.py simulation/run.py",
    "standing": "balancer/snapshot.py endpoint/endpoint.py",
    "Refusal": "endpoint/instance.py",
}


def defined(tree):
    """The names of classes, functions, arguments and attributes, and of a module's own values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        if isinstance(node, ast.ClassDef | ast.Module):
            for inner in node.body:
                targets = inner.targets if isinstance(inner, ast.Assign) else [inner]
                targets = [inner.target] if isinstance(inner, ast.AnnAssign) else targets
                yield from (one.id for one in targets if isinstance(one, ast.Name))


def files_by_name():
    """The files that define each name, without leading and trailing underscores."""
    files = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        for name in defined(ast.parse(path.read_text())):
            files[name.strip("_")].add(str(path.relative_to(ROOT)))
    return files


FILES = files_by_name()
ALLOWED = defaultdict(set)
for allowed in (OTHER_MEANINGS, ALIASES):
    for word, places in allowed.items():
        ALLOWED[word].update(places.split())


@pytest.mark.parametrize(("new", "old"), RENAMED.items())
def test_no_old_name_comes_back(new, old):
    """An abandoned name is not defined anywhere with its old meaning."""
    for name in old.split():
        back = FILES.get(name, set()) - ALLOWED.get(name, set())
        assert not back, f"{name} is called {new} now; see {sorted(back)}"


def test_nothing_is_allowed_in_vain():
    """Each exception is used, in at least one of its files."""
    for name, places in ALLOWED.items():
        assert places & FILES.get(name, set()), f"{name} is not defined in {places}"
