"""The whole process: clients, caches, controllers, the progress server and probes, wired from one configuration.

Everything runs in one event loop under one task group. If one part ends, the process ends, and Kubernetes restarts it,
because a half-alive operator is worse than none. All replicas keep their caches filled and serve probes. Only the
leader watches runs, makes passes and accepts reports. A replica that loses the leadership exits at once, whatever its
threads are doing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
import uuid

from deepcoder_operator import VERSION
from deepcoder_operator.builders.pool import PoolSettings
from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.clock import SteadyClock, since_boot
from deepcoder_operator.config import Authentication, OperatorConfig
from deepcoder_operator.controllers.carry_out import Executor
from deepcoder_operator.controllers.observe import Children, Observer, run_group
from deepcoder_operator.controllers.pool import PoolController
from deepcoder_operator.controllers.reconcile import Reconciler
from deepcoder_operator.controllers.run import RunController, run_of
from deepcoder_operator.controllers.watch import RunWatch
from deepcoder_operator.domain.names import LABEL_RUN, LABEL_RUN_UID
from deepcoder_operator.domain.policy import Policy, Price
from deepcoder_operator.kube import errors, lease
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.events import EventRecorder
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.lease import Election
from deepcoder_operator.kube.resources import PODS, POOLS, RAYCLUSTERS, RAYJOBS, Resource
from deepcoder_operator.loop_lag import LoopLag
from deepcoder_operator.probes import Probes
from deepcoder_operator.progress.authentication import Remembering, Reviewer, TokenReviewer
from deepcoder_operator.progress.certificate_store import CertificateStore
from deepcoder_operator.progress.health import HealthServer
from deepcoder_operator.progress.server import ProgressServer
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.judges import Judges
from deepcoder_operator.sandbox.pool_objects import PoolObjects
from deepcoder_operator.sandbox.reconciler import PoolReconciler
from deepcoder_operator.storage.credentials import CredentialReader
from deepcoder_operator.storage.service import StorageService

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 30.0
EVERY_ADDRESS = None
"""Listen on all addresses, IPv4 and IPv6: probes and trainers use the pod's first address, of either family."""


class Operator:
    """All parts of the process."""

    def __init__(self, config: OperatorConfig, kube: Kube) -> None:
        self.config, self.kube = config, kube
        leases = kube.apart(lease.CONNECTIONS, deadline=lease.ANSWER_SECONDS, attempts=1)
        self.election = Election(leases, config.namespace, config.lease, _identity(), since_boot)
        kube.fence = leases.fence = self.election.check
        self.clock = SteadyClock()
        self.board = ProgressBoard()
        self.record = EventRecorder(kube, time.monotonic)
        self.certificates = CertificateStore(kube, config.namespace, config.progress.tls_secret, [config.progress.host])
        self.storage = StorageService(
            CredentialReader(kube, time.monotonic),
            config.storage.allowed_endpoints,
            loopback="KUBERNETES_SERVICE_HOST" not in os.environ,  # in a pod
        )
        self.pools = PoolController(kube, self.board, self._pool_reconciler, namespaces=config.watch_namespaces)
        self.children = Children(
            rayjobs=self._of_runs(RAYJOBS),
            clusters=self._of_runs(RAYCLUSTERS),
            pods=self._of_runs(PODS),
            pools=self.pools.pools,
        )
        self.observer = Observer(kube, self.children, self.board, self.storage)
        self.executor = Executor(kube, self.children.rayjobs, self.storage, self._trainer_settings(""), self.record)
        reconciler = Reconciler(
            kube=kube,
            observer=self.observer,
            executor=self.executor,
            board=self.board,
            policy=self._policy(),
            record=self.record,
            now=self.clock.now,
        )
        self.runs = RunController(kube, reconciler, self.board)
        self.watch = RunWatch(kube, self.runs, config.watch_namespaces)
        self.pools.pools.listen(self._pool_changed)
        self.storage.aside = self.runs.limit.aside
        self.board.on_report, self.board.on_news = self.pools.report_received, self.runs.wake
        tokens = Remembering(_reviewer(config, kube), time.monotonic)
        self.progress = ProgressServer(
            self.board, tokens, self._find_pod, active=lambda: self.election.leads, wall=self.clock.time
        )
        self.lag = LoopLag(since_boot)
        probes = Probes(self._informers(), self.watch, self.leader)
        self.health = HealthServer(
            live={"watches": probes.watches, "loop": self.lag.check},
            ready={"caches": probes.caches, "progress": self._serving},
        )
        self._served = False

    @property
    def leader(self) -> asyncio.Event:
        """Event that is set when this replica becomes the leader."""
        return self.election.leader

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Raises the error of a part that fails."""
        await self.health.start(EVERY_ADDRESS, self.config.health_port)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._work(), name="work"),
                    group.create_task(self.lag.run(), name="loop lag"),
                ]
                await stop.wait()
                log.info("stopping on request")
                for task in tasks:
                    task.cancel()
        finally:
            await self.runs.stop()
            await self.record.flush()  # before the Lease is released: nothing can be sent after that
            await self.election.release()
            await self.progress.stop()
            await self.health.stop()
            self.storage.close()

    async def _work(self) -> None:
        """Serve progress reports, then watch and reconcile until cancelled."""
        await self._first_certificates()
        self.executor.settings = self._trainer_settings(self.certificates.bundle)
        port = await self.progress.start(EVERY_ADDRESS, self.config.progress.port, self.certificates.context)
        self._served = True
        log.info("operator %s: progress on port %d, under %s", VERSION, port, self.config.progress.url)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.children.rayjobs.run(), name="watch RayJobs")
            group.create_task(self.children.clusters.run(), name="watch RayClusters")
            group.create_task(self.children.pods.run(), name="watch pods of runs")
            group.create_task(self.runs.run(), name="runs")
            group.create_task(self.pools.run(), name="pools")
            group.create_task(self._keep_certificates(), name="certificates")
            group.create_task(self._lead(), name="lead")

    async def _first_certificates(self) -> None:
        """Load the certificates, retrying while the API server cannot be reached or /tmp is full: a restart would not
        help."""
        pause = 1.0
        while True:
            try:
                return await self.certificates.refresh()
            except (errors.KubeError, OSError) as e:
                log.warning("the certificates cannot be read or created yet: %s; retrying in %.0f s", e, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _lead(self) -> None:
        """Stand for election once all caches are filled, and reconcile while this replica leads."""
        await self.children.synced()
        log.info("caches are filled, %s is a candidate", self.election.identity)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.election.run(), name="lease")
            await self.leader.wait()
            self.clock.hold()
            self.observer.begin(self.clock.now)
            self.runs.start()
            self.pools.start()
            group.create_task(self.watch.run(), name="watch DeepCoderRuns")

    async def _keep_certificates(self) -> None:
        """Keep the certificates current, in the server and in the settings of new attempts."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.certificates.run())
            while True:
                await asyncio.sleep(60)
                self.executor.settings = self._trainer_settings(self.certificates.bundle)

    def _of_runs(self, resource: Resource) -> Informer:
        """Return an informer for child objects of runs, indexed by their run's UID."""
        namespaces = self.config.watch_namespaces
        return Informer(self.kube, resource, LABEL_RUN_UID, self._child_changed, namespaces=namespaces, index=run_group)

    def _informers(self) -> dict[str, Informer]:
        children = self.children
        return {
            RAYJOBS.plural: children.rayjobs,
            RAYCLUSTERS.plural: children.clusters,
            "pods of runs": children.pods,
            "pods of pools": self.pools.pods,
            POOLS.plural: self.pools.pools,
        }

    def _pool_reconciler(self, pods: Informer) -> PoolReconciler:
        config = self.config
        settings = PoolSettings(
            default_image=config.images.sandbox,
            operator_namespace=config.namespace,
            operator_labels=config.pod_labels,
            run_label=LABEL_RUN,
            monitoring_namespace=config.monitoring_namespace,
            fixed_user=config.fixed_user,
        )
        return PoolReconciler(
            kube=self.kube,
            judges=Judges(self.kube, pods, settings, CapacityPoller(time.monotonic)),
            support=PoolObjects(self.kube, settings, time.monotonic),
            board=self.board,
            record=self.record,
            clock=time.monotonic,
            wall=self.clock.time,
        )

    def _trainer_settings(self, bundle: str) -> TrainerSettings:
        config = self.config
        return TrainerSettings(
            progress_url=config.progress.url,
            ca_bundle=bundle,
            kuberay_namespace=config.kuberay_namespace,
            monitoring_namespace=config.monitoring_namespace,
            fixed_user=config.fixed_user,
        )

    def _policy(self) -> Policy:
        prices = tuple(Price(p.per_gpu_hour, p.node_selector) for p in self.config.prices)
        return Policy(trainer_image=self.config.images.trainer, operator_version=VERSION, prices=prices)

    def _child_changed(self, obj: Object) -> None:
        key = run_of(obj)
        if key is not None:
            self.runs.wake(key)

    def _pool_changed(self, obj: Object) -> None:
        self.runs.wake_pool(obj["metadata"]["namespace"], obj["metadata"]["name"])

    async def _find_pod(self, namespace: str, name: str) -> Object | None:
        watched = self.config.watch_namespaces
        if watched and namespace not in watched:
            return None
        return self.children.pods.get(namespace, name) or await self.kube.find(PODS, namespace, name)

    def _serving(self) -> str | None:
        return None if self._served else "not served yet: there are no certificates"


def _reviewer(config: OperatorConfig, kube: Kube) -> Reviewer:
    """Return the configured token reviewer. The library that only `KeyReviewer` needs is imported only for it."""
    if config.progress.authentication is not Authentication.JWKS:
        return TokenReviewer(kube)
    from deepcoder_operator.progress.jwks import KeyReviewer

    return KeyReviewer(kube, time.monotonic)


def _identity() -> str:
    """Return this replica's identity. A pod keeps its name, and so its Lease, when its container restarts."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


async def run_operator(config: OperatorConfig) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    kube = await Kube.connect()
    gc.collect()
    gc.freeze()  # Imported modules stay: the collector need not scan them again.
    try:
        await Operator(config, kube).run(stop)
    except* errors.LeadershipLost:
        logging.shutdown()
        os._exit(1)  # without waiting for threads: another replica may be the leader by now
    finally:
        await kube.close()
