"""The detector as a lifecycle node: wiring of topics, parameters and threads around the frame pipeline.

The executor's thread receives frames into a one-slot mailbox; one worker thread takes the newest, runs the pipeline and
publishes. The bundle loads in configure, subscriptions start in activate.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import AnomsegError, ConfigError
from anomseg_ros.node import health, pipeline, vision
from anomseg_ros.node.mailbox import Mailbox
from anomseg_ros.node.parameters import Fixed, current_values, declare_parameters, fixed_parameters, live_parameters

NODE_NAME = "detector"
DIAGNOSTICS_PERIOD_S = 1.0
WORKER_STOP_S = 30.0

CAMERA_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
OUTPUT_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

Frame = tuple[Any, float]


class DetectorNode(LifecycleNode):
    """Publishes labels, anomaly scores, masks and overlays of a camera's frames."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__(NODE_NAME, **node_options)
        declare_parameters(self)
        self._pipeline: pipeline.FramePipeline | None = None
        self._outputs: dict[str, Any] = {}
        self._subscriptions_made: list[Any] = []
        self._mailbox: Mailbox[Frame] = Mailbox()
        self._worker: threading.Thread | None = None
        self._camera_info: CameraInfo | None = None
        self._frame_size: tuple[int, int] | None = None
        self._limits = live_parameters(current_values(self)).limits
        self.health = health.Health()
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock: diagnostics must come also when simulated time stands still or no image comes.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        self._jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_clock_jump)

    # Lifecycle: each step either succeeds whole or says why and leaves the node as it was.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle and offer the output topics."""
        try:
            fixed = fixed_parameters(current_values(self))
            self._pipeline = self._load(fixed)
        except AnomsegError as error:
            self.get_logger().error(f"cannot configure: {error}")
            return TransitionCallbackReturn.FAILURE
        self._create_outputs()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the camera and start working."""
        result = super().on_activate(state)
        self._mailbox = Mailbox()
        self.health.reset()
        self._publish_label_info()
        self._worker = threading.Thread(target=self._work, args=(self._mailbox,), name="detector", daemon=True)
        self._worker.start()
        self._subscribe(fixed_parameters(current_values(self)).image_transport)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, finish the frame in work, and stop."""
        self._stop_working()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and withdraw the output topics."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From whatever state: stop and release."""
        self._stop_working()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected error in a transition: release everything, so that configure can be tried again."""
        return self.on_shutdown(state)

    def _load(self, fixed: Fixed) -> pipeline.FramePipeline:
        self.get_logger().info(f"loading bundle {fixed.bundle}")
        bundle = load_bundle(find_bundle(fixed.bundle))
        contract = bundle.contract
        if fixed.precision not in ("auto", contract.precision):
            raise ConfigError(
                f"parameter 'precision' asks for {fixed.precision}, bundle {contract.name!r} is {contract.precision}; "
                "give a bundle of that precision, or precision auto"
            )
        settings = pipeline.resolve(live_parameters(current_values(self)), bundle)
        ego_mask = pipeline.read_ego_mask(fixed.ego_mask)
        detector = open_detector(bundle, fixed.backend, fixed.options)
        detector.warm_up((settings.score,))
        size = f"{contract.input.width_px}x{contract.input.height_px}"
        self.get_logger().info(f"bundle {contract.name} ({contract.network}, {size}) on {detector.backend.actual}")
        return pipeline.FramePipeline(detector, settings, ego_mask)

    def _release(self) -> None:
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = {}
        if self._pipeline is not None:
            self._pipeline.detector.close()
            self._pipeline = None

    # Topics

    def _create_outputs(self) -> None:
        types = {
            pipeline.LABELS: Image,
            pipeline.SCORE: Image,
            pipeline.MASK: Image,
            pipeline.OVERLAY: Image,
            pipeline.OVERLAY_COMPRESSED: CompressedImage,
            pipeline.CAMERA_INFO: CameraInfo,
        }
        if vision.available():
            from vision_msgs.msg import Detection2DArray

            types[pipeline.DETECTIONS] = Detection2DArray
        options = QoSOverridingOptions.with_default_policies()
        self._outputs = {
            topic: self.create_lifecycle_publisher(message_type, topic, OUTPUT_QOS, qos_overriding_options=options)
            for topic, message_type in types.items()
        }

    def _publish_label_info(self) -> None:
        assert self._pipeline is not None
        if not vision.available():
            return
        from vision_msgs.msg import LabelInfo

        contract, threshold = self._pipeline.detector.bundle.contract, self._pipeline.settings.threshold
        if "~/label_info" not in self._outputs:
            self._outputs["~/label_info"] = self.create_lifecycle_publisher(LabelInfo, "~/label_info", LATCHED_QOS)
            self._outputs["~/label_info"].on_activate(None)
        header = Header(stamp=self.get_clock().now().to_msg())
        value = threshold.value if threshold else 0.0
        self._outputs["~/label_info"].publish(vision.label_info_message(contract.classes, header, value))

    def _subscribe(self, transport: str) -> None:
        message_type, topic = (CompressedImage, "image/compressed") if transport == "compressed" else (Image, "image")
        events = SubscriptionEventCallbacks(message_lost=self._on_lost)
        image = self.create_subscription(
            message_type,
            topic,
            self._on_image,
            CAMERA_QOS,
            event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        info = self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, CAMERA_QOS)
        self._subscriptions_made = [image, info]

    def _on_image(self, msg: Image | CompressedImage) -> None:
        self.health.received()
        self._mailbox.put((msg, time.monotonic()))

    def _on_lost(self, event: Any) -> None:
        self.health.add(lost=event.total_count_change)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    # The worker thread

    def _work(self, mailbox: Mailbox[Frame]) -> None:
        while (frame := mailbox.take()) is not None:
            try:
                self._process(*frame)
            except AnomsegError as error:
                self._skip(str(error))
            except Exception as error:  # a vehicle's node survives what nobody thought of
                self._skip(f"unexpected {type(error).__name__}: {error}")

    def _process(self, msg: Image | CompressedImage, received_at: float) -> None:
        assert self._pipeline is not None
        # A snapshot of who listens: only that is computed.
        wanted = [topic for topic, publisher in self._outputs.items() if publisher.get_subscription_count()]
        wanted = [topic for topic in wanted if topic != "~/label_info"]
        if not wanted:
            self.health.add(idle=1)
            return
        result = self._pipeline.process(msg, wanted, self._camera_info)
        for topic, message in result.messages.items():
            self._outputs[topic].publish(message)
        age = self.get_clock().now() - Time.from_msg(msg.header.stamp, clock_type=self.get_clock().clock_type)
        processing_ms = (time.monotonic() - received_at) * 1e3
        self.health.published(
            age.nanoseconds / 1e6, processing_ms, result.network_ms, self._limits, roadless=result.roadless
        )
        self._note_size(result.frame_size)

    def _skip(self, reason: str) -> None:
        self.health.bad(reason)
        self.get_logger().warning(f"frame skipped: {reason}", throttle_duration_sec=1.0)

    def _note_size(self, size: tuple[int, int]) -> None:
        if size != self._frame_size:
            self.get_logger().info(f"frames are {size[0]}x{size[1]}")
            self._frame_size = size

    def _stop_working(self) -> None:
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made = []
        self._mailbox.close()
        if self._worker is not None:
            self._worker.join(WORKER_STOP_S)
            self._worker = None

    # Parameters and diagnostics

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values = current_values(self) | {parameter.name: parameter.value for parameter in parameters}
        try:
            live = live_parameters(values)
            if self._pipeline is not None:
                pipeline.resolve(live, self._pipeline.detector.bundle)
        except AnomsegError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, parameters: list[Parameter]) -> None:
        live = live_parameters(current_values(self))
        self._limits = live.limits
        if self._pipeline is not None:
            self._pipeline.settings = pipeline.resolve(live, self._pipeline.detector.bundle)

    def _on_clock_jump(self, jump: Any) -> None:
        self.health.clock_jumped()
        self.get_logger().warning("the clock jumped back; latencies start anew", throttle_duration_sec=1.0)

    def _publish_diagnostics(self) -> None:
        name = self.get_fully_qualified_name()
        active = self._worker is not None
        statuses = [health.camera_status(name, self.health.snapshot(self._mailbox.dropped), self._limits, active)]
        if self._pipeline is not None:
            statuses.append(_detector_status(name, self._pipeline))
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(DiagnosticArray(header=Header(stamp=stamp), status=statuses))


def _detector_status(name: str, running: pipeline.FramePipeline) -> DiagnosticStatus:
    """Return the status of bundle, backend and threshold: an ERROR if the backend is not the one asked for."""
    backend, contract, settings = running.detector.backend, running.detector.bundle.contract, running.settings
    level, message = health.OK, f"{contract.name} on {backend.actual}"
    if settings.threshold is None:
        level = health.WARN
        message = (
            f"score {settings.score!r} has no threshold, so no mask: set parameter threshold, or calibrate the bundle"
        )
    if backend.actual != backend.requested:
        level, message = health.ERROR, f"{backend.requested} was asked for, {backend.actual} is in use"
    values = {
        "bundle": contract.name,
        "network": contract.network,
        "precision": contract.precision,
        "backend_requested": backend.requested,
        "backend": backend.actual,
        "score": settings.score,
        "threshold": "none" if settings.threshold is None else f"{settings.threshold.value:g}",
        "threshold_source": "none" if settings.threshold is None else settings.threshold.source,
        "road_region": settings.live.road_region,
        **health.drift_values(contract.compression),
    }
    return health.status(f"{name}: detector", level, message, values)
