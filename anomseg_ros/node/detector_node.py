"""The detector as a lifecycle node: connects topics, parameters and threads to the frame pipeline.

The executor's thread puts each received frame into a one-slot mailbox. A worker thread takes the newest frame, runs the
pipeline and publishes the results. Configure loads the bundle, activate subscribes to the camera.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.core.bundle import LABELS_OUTPUT, load_bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import AnomsegError
from anomseg_ros.node import conversions, diagnostics, pipeline, vision
from anomseg_ros.node.activation import Activation, logs_failure
from anomseg_ros.node.arrivals import CAMERA_TOPICS, IMAGE_TYPES, SequenceGaps, image_source
from anomseg_ros.node.engines import Engines, Share
from anomseg_ros.node.health import BAD, DROPPED, IDLE, PUBLISHED, FrameResult, Health, Level, State, current_states
from anomseg_ros.node.names import qos_overrides
from anomseg_ros.node.narrator import Narrator, waiting_line
from anomseg_ros.node.parameters import (
    FixedParameters,
    check_only_live_changed,
    current_values,
    declare_parameters,
    fixed_parameters,
    live_parameters,
)
from anomseg_ros.node.ros_distributions import (
    SubscriptionEventCallbacks,
    call_after_parameters_are_set,
    with_message_info,
)

NODE_NAME = "detector"
DIAGNOSTICS_PERIOD_S = 1.0
MAX_CAMERA_INFOS = 64
LABEL_INFO = "~/label_info"

CAMERA_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
CAMERA_INFO_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
OUTPUT_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class DetectorNode(LifecycleNode):
    """Publishes labels, anomaly scores, masks and overlays for the frames of one camera."""

    def __init__(self, engines: Engines | None = None, **node_options: Any) -> None:
        """engines: shared by the cameras of the process. node_options: keyword arguments of rclpy's node."""
        super().__init__(NODE_NAME, **node_options)
        self.qos_override_names = qos_overrides(self, pipeline.OUTPUTS, CAMERA_TOPICS)
        declare_parameters(self)
        self._engines = engines or Engines()
        self._share: Share | None = None
        self._pipeline: pipeline.FramePipeline | None = None
        self._activation: Activation | None = None
        self.failure = ""  # why the last lifecycle transition failed
        self._output_publishers: dict[str, Any] = {}
        self._label_info_publisher: Any = None
        self._label_info_error = ""
        self._image_subscription: Any = None
        self._camera_info_subscription: Any = None
        self._gaps = SequenceGaps()
        self._camera_infos: deque[CameraInfo] = deque(maxlen=MAX_CAMERA_INFOS)
        self._narrator = Narrator(self.get_logger())
        self.health = Health(live_parameters(current_values(self)).limits)
        self.add_on_set_parameters_callback(self._check_parameters)
        call_after_parameters_are_set(self, self._apply_parameters)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock, so that diagnostics continue while simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        self._jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_clock_jump)

    # Lifecycle. A transition that fails logs the reason and leaves the node as it was before.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle and create the output publishers."""
        try:
            self._pipeline = self._load_pipeline(fixed_parameters(current_values(self)))
            self._create_publishers()
        except Exception as error:  # an engine may raise any exception
            self._release()
            return self._report_failure("configure", error)
        self.failure = ""
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the camera and start the worker."""
        result = super().on_activate(state)
        try:
            self._start_working()
        except Exception as error:
            self._stop_working()
            super().on_deactivate(state)
            return self._report_failure("activate", error)
        self.failure = ""
        return result

    @logs_failure
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, finish the current frame and stop. If that frame is stuck, the node must be configured again."""
        if not self._stop_working():
            return TransitionCallbackReturn.ERROR
        return super().on_deactivate(state)

    @logs_failure
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and remove the output publishers."""
        self._release()
        return super().on_cleanup(state)

    @logs_failure
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the worker and release everything, in any state."""
        self._stop_working()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything after an unexpected error in a transition, so that configure can be tried again."""
        return self.on_shutdown(state)

    def _report_failure(self, transition: str, error: Exception) -> TransitionCallbackReturn:
        """Log why a transition failed; the diagnostics repeat the reason until the transition succeeds."""
        self.failure = f"cannot {transition}: {pipeline.error_reason(error)}"
        self.get_logger().error(self.failure)
        return TransitionCallbackReturn.FAILURE

    def shut_down(self) -> None:
        """Go to the state finalized, unless the node is already there."""
        with suppress(RuntimeError):  # rclpy raises it for a transition that the current state does not have
            self.trigger_shutdown()

    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:
        # rclpy's own method lets this error through: the executor would stop, and the caller would wait forever.
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)  # type: ignore[misc]
        except RuntimeError as error:
            self.get_logger().warning(f"no such transition from the current state: {error}")
            response.success = False
            return response

    def _load_pipeline(self, fixed: FixedParameters) -> pipeline.FramePipeline:
        self.get_logger().info(f"loading bundle {fixed.bundle}")
        bundle = load_bundle(find_bundle(fixed.bundle))
        contract = bundle.contract
        fixed.check_precision(contract)
        settings = pipeline.resolve(live_parameters(current_values(self)), bundle)
        ego_mask = pipeline.read_ego_mask(fixed.ego_mask)
        outputs = (LABELS_OUTPUT, settings.score)
        self._share = self._engines.open(bundle, fixed.backend, fixed.options, outputs, self._publish_progress)
        sharing = f", shared by {self._share.cameras} cameras" if self._share.cameras > 1 else ""
        size = f"{contract.input.width_px}x{contract.input.height_px}"
        self.get_logger().info(f"bundle {contract.name} ({contract.network}, {size}) on {self._share.actual}{sharing}")
        if self._share.actual != self._share.requested:
            self.get_logger().error(f"{self._share.requested} was asked for, {self._share.actual} is in use")
        return pipeline.FramePipeline(Detector(bundle, self._share), settings, ego_mask)

    def _publish_progress(self, what: str, done: int, total: int | None) -> None:
        """Publish diagnostics while an engine is built: the executor's thread, which does that otherwise, is busy."""
        self._publish_statuses([diagnostics.building_status(what, done, total)])

    def _start_working(self) -> None:
        assert self._pipeline is not None and self._share is not None
        self.health = Health(self.health.limits)
        self._narrator.begin()
        self._camera_infos.clear()
        self._pipeline.forget_past()
        self._publish_label_info()
        self._activation = Activation(self.process_frames, self._pipeline, self.health, self._share.turns)
        # Before the image subscription, so that the CameraInfo of an image is received before the image.
        self._camera_info_subscription = self.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, CAMERA_INFO_QOS
        )
        self._follow_camera()

    def _stop_working(self) -> bool:
        """Stop the worker, if the node is active; return whether the worker finished its frame in time."""
        for subscription in (self._image_subscription, self._camera_info_subscription):
            if subscription is not None:
                self.destroy_subscription(subscription)
        self._image_subscription = self._camera_info_subscription = None
        activation, self._activation = self._activation, None
        if activation is None or activation.stop():
            return True
        self.failure = "the current frame is stuck, so its engine is abandoned; configure the node again"
        self.get_logger().error(self.failure)
        if self._share is not None:
            self._share.abandon()
        self._pipeline = self._share = None
        return False

    def _release(self) -> None:
        for publisher in self._output_publishers.values():
            self.destroy_lifecycle_publisher(publisher)
        if self._label_info_publisher is not None:
            self.destroy_lifecycle_publisher(self._label_info_publisher)
        self._output_publishers, self._label_info_publisher, self._label_info_error = {}, None, ""
        if self._share is not None:
            self._share.close()
        self._pipeline = self._share = None

    # Topics

    def _create_publishers(self) -> None:
        message_types = {
            pipeline.LABELS: Image,
            pipeline.SCORE: Image,
            pipeline.MASK: Image,
            pipeline.OVERLAY: Image,
            pipeline.OVERLAY_COMPRESSED: CompressedImage,
            pipeline.CAMERA_INFO: CameraInfo,
        }
        if vision.available():
            from vision_msgs.msg import Detection2DArray, LabelInfo

            message_types[pipeline.DETECTIONS] = Detection2DArray
            self._label_info_publisher = self.create_lifecycle_publisher(LabelInfo, LABEL_INFO, LATCHED_QOS)
        options = QoSOverridingOptions.with_default_policies()
        self._output_publishers = {
            topic: self.create_lifecycle_publisher(message_type, topic, OUTPUT_QOS, qos_overriding_options=options)
            for topic, message_type in message_types.items()
        }

    def _publish_label_info(self) -> None:
        if self._label_info_publisher is None or self._pipeline is None:
            return
        contract, threshold = self._pipeline.detector.bundle.contract, self._pipeline.settings.threshold
        header = Header(stamp=self.get_clock().now().to_msg())
        value = threshold.value if threshold else 0.0
        try:
            self._label_info_publisher.publish(vision.label_info_message(contract.classes, header, value))
            self._label_info_error = ""
        except Exception as error:  # the other outputs go on; the diagnostics name this one
            self._label_info_error = f"{LABEL_INFO} cannot be published: {pipeline.error_reason(error)}"

    def _follow_camera(self) -> list[str]:
        """Subscribe to the camera, again if its message type changes; return the type of each of its publishers."""
        types = self._published_types("image")
        if types or self._image_subscription is None:  # without a publisher, keep the subscription as it is
            transport = fixed_parameters(current_values(self)).image_transport
            self._subscribe(*image_source(transport, types))
        types = self._published_types(self._image_subscription.topic_name)
        self._gaps.has_one_publisher = len(types) < 2
        return types

    def _subscribe(self, message_type: Any, topic: str) -> None:
        if (current := self._image_subscription) is not None:
            if (current.msg_type, current.topic_name) == (message_type, self.resolve_topic_name(topic)):
                return
            self.destroy_subscription(current)
        self._gaps = SequenceGaps()
        self._image_subscription = self.create_subscription(
            message_type,
            topic,
            with_message_info(self._on_image),
            CAMERA_QOS,
            event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self.get_logger().info(waiting_line(self._image_subscription))

    def _published_types(self, topic: str) -> list[str]:
        """Return the message type of each publisher on a topic."""
        return [publisher.topic_type for publisher in self.get_publishers_info_by_topic(topic)]

    def _on_image(self, msg: Image | CompressedImage, info: Any) -> None:
        if (activation := self._activation) is None:
            return
        activation.health.lost(self._gaps.before(info), reported=False)
        age_ms = conversions.age_ms_of(msg.header, self.get_clock().now().nanoseconds)
        activation.health.received(None if age_ms is None else age_ms / 1e3, msg.header.frame_id)
        if activation.mailbox.put((msg, time.monotonic())):
            activation.health.dropped()

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_infos.append(msg)

    def _on_lost(self, event: Any) -> None:
        self.health.lost(event.total_count_change)

    # The worker thread

    def process_frames(self, activation: Activation) -> None:
        """Process the frames of one activation until its mailbox is closed."""
        while (frame := activation.mailbox.take()) is not None:
            activation.health.started()
            activation.health.finished(self._frame_result(activation, *frame))

    def _frame_result(self, activation: Activation, msg: Image | CompressedImage, received_at: float) -> FrameResult:
        try:
            result = self._process(activation, msg, received_at)
        except Exception as error:  # no exception, expected or not, may stop the node of a vehicle
            result = FrameResult(BAD, pipeline.error_reason(error))
        if result.outcome == BAD:
            self.get_logger().warning(f"frame skipped: {result.reason}", throttle_duration_sec=1.0)
        return result

    def _process(self, activation: Activation, msg: Image | CompressedImage, received_at: float) -> FrameResult:
        topics = [topic for topic, publisher in self._output_publishers.items() if publisher.get_subscription_count()]
        if not topics:
            return FrameResult(IDLE)
        outputs = activation.pipeline.process(msg, topics, self._camera_infos)
        if activation.abandoned:
            return FrameResult(DROPPED)
        for topic, message in outputs.messages.items():
            try:
                self._output_publishers[topic].publish(message)
            except Exception as error:
                outputs.failed[topic] = pipeline.error_reason(error)
        if outputs.failed and outputs.failed.keys() >= outputs.messages.keys():
            reason = "; ".join(f"{topic}: {reason}" for topic, reason in outputs.failed.items())
            return FrameResult(BAD, reason, failed=outputs.failed)
        return FrameResult(
            PUBLISHED if outputs.messages else IDLE,
            latency_ms=conversions.age_ms_of(msg.header, self.get_clock().now().nanoseconds),
            processing_ms=(time.monotonic() - received_at) * 1e3,
            network_ms=outputs.network_ms,
            size=outputs.frame_size,
            roadless=outputs.roadless,
            failed=outputs.failed,
        )

    # Parameters and diagnostics

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values, changed = current_values(self), {parameter.name: parameter.value for parameter in parameters}
        try:
            live = live_parameters(values | changed)
            if self._pipeline is not None:
                check_only_live_changed(values, changed)
                settings = pipeline.resolve(live, self._pipeline.detector.bundle)
                if self._share is not None and settings.score != self._pipeline.settings.score:
                    # Where no engine has the score, every frame would fail, labels included.
                    self._share.prepare((LABELS_OUTPUT, settings.score))
        except AnomsegError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, parameters: list[Parameter]) -> None:
        live = live_parameters(current_values(self))
        self.health.limits = live.limits
        if self._pipeline is not None:
            self._pipeline.settings = pipeline.resolve(live, self._pipeline.detector.bundle)
            self._publish_label_info()

    def _on_clock_jump(self, jump: Any) -> None:
        self.health.clock_jumped()
        self.get_logger().warning("the clock jumped back; latency statistics are reset", throttle_duration_sec=1.0)

    def _publish_diagnostics(self) -> None:
        types = self._follow_camera() if self._activation else []
        snapshot = self.health.snapshot(len(types), () if IMAGE_TYPES.intersection(types) else sorted({*types}))
        problem = self.failure or diagnostics.missing_bundle_file(self._pipeline)
        if self._activation is not None:
            states = current_states(snapshot, self.health.limits)
            self._narrator.tell(snapshot, states)
        else:
            states = [State(Level.ERROR, "trouble", problem) if problem else diagnostics.INACTIVE]
        statuses = [
            diagnostics.frame_status(snapshot, states),
            diagnostics.detector_status(self._pipeline, problem or self._label_info_error),
        ]
        self._publish_statuses(statuses, snapshot.frame_id)

    def _publish_statuses(self, statuses: list[Any], frame_id: str = "") -> None:
        header, name = Header(stamp=self.get_clock().now().to_msg()), self.get_fully_qualified_name()
        hardware_id = self.get_parameter("hardware_id").value or frame_id or self.resolve_topic_name("image")
        self._diagnostics_publisher.publish(diagnostics.diagnostic_array(header, name, hardware_id, statuses))
