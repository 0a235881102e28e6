"""One connection's calls: who calls, with which file descriptors, and for how long.

asyncvarlink's protocol, with streams that end when their caller does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from asyncvarlink import (
    AnnotatedResult,
    FileDescriptorArray,
    VarlinkErrorReply,
    VarlinkInterfaceServerProtocol,
    VarlinkMethodCall,
    VarlinkMethodReply,
)
from asyncvarlink.conversion import ConversionError, FileDescriptorVarlinkType
from asyncvarlink.serviceerrors import ExpectedMore, InvalidParameter

from gmemd.daemon.varlink.errors import FdRejected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from asyncvarlink.interface import VarlinkMethodSignature

    from gmemd.daemon.varlink.peer import Peer
    from gmemd.daemon.varlink.transport import Transport

log = logging.getLogger(__name__)

MOST_ITEMS = 2048
"""Of a list among a call's parameters: twice what any method takes."""


@dataclass(frozen=True, slots=True)
class Call:
    """What comes with a call beside its parameters.

    ``fds`` are the file descriptors of its message, by index. They are open while the method runs;
    a method duplicates what it keeps.
    """

    peer: Peer
    fds: tuple[int, ...] = ()


CALL: ContextVar[Call] = ContextVar("call")
"""The call that the running method was called by."""


def current_call() -> Call:
    """Return the call that is being answered, in a method or what it awaits."""
    return CALL.get()


def _refuse_long_lists(call: VarlinkMethodCall) -> None:
    """Raise InvalidParameter before the loop spends its time on items that nobody needs."""
    for name, value in call.parameters.items():
        if isinstance(value, list) and len(value) > MOST_ITEMS:
            raise InvalidParameter(parameter=name)


def _parameters(
    signature: VarlinkMethodSignature, call: VarlinkMethodCall, fds: FileDescriptorArray | None
) -> dict[str, Any]:
    """A call's parameters as a method takes them; raises InvalidParameter."""
    try:
        return cast(
            "dict[str, Any]",
            signature.parameter_type.fromjson(call.parameters, {FileDescriptorVarlinkType: fds}),
        )
    except ConversionError as error:
        raise InvalidParameter(parameter=error.location[0]) from error


class Protocol(VarlinkInterfaceServerProtocol):
    """One connection; its methods know who calls.

    A method that is an async generator yields AnnotatedResults, all but the last with
    ``continues``. Without "more" only the last one is sent, unless the method is of ONLY_MORE. It
    goes on after a yield once that reply is sent. When it can't be sent, or the caller hangs up,
    the generator ends where it is: by CancelledError in an await, GeneratorExit in a yield.
    """

    ONLY_MORE = frozenset({"Watch"})
    """Methods that mean nothing without "more"."""

    ENCODED = frozenset({"List"})
    """Methods that return the parameters of their reply as they are sent: bytes of JSON."""

    refused: Callable[[str], None] | None = None
    """Is told each error that a call is answered with, by its name without the interface."""

    _streaming: asyncio.Task[None] | None = None
    _peer_gone = False

    def peer_gone(self) -> None:
        """End the call that streams, as nobody is there to read the replies."""
        self._peer_gone = True
        if self._streaming is not None:
            self._streaming.cancel()

    def send_error(self, error: VarlinkErrorReply) -> asyncio.Future[None]:
        """Answer a call with an error, and tell of it."""
        if self.refused is not None:
            self.refused(error.name.rpartition(".")[2])
        return super().send_error(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what streams, and forget the transport."""
        self.peer_gone()
        super().connection_lost(exc)

    def call_received(self, call: VarlinkMethodCall, fds: FileDescriptorArray | None) -> Any:  # noqa: ANN401  asyncvarlink's own type names a private class
        """Run the method with its caller in its context."""
        transport = self._transport
        if transport is None:
            return None
        numbers = tuple(fd.fileno() for fd in fds or ())
        token = CALL.set(Call(transport.get_extra_info("peer"), numbers))
        try:
            _refuse_long_lists(call)
            method, signature = self._registry.lookup_method(replace(call, more=True))
            if signature.more:
                return self._stream_call(method, signature, call, fds)
            if call.method_name in self.ENCODED:
                return asyncio.ensure_future(self._encoded_call(method, signature, call))
            return super().call_received(call, fds)
        finally:
            CALL.reset(token)

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Queue one whole message, its NUL included; one that is no JSON object ends it all."""
        try:
            called = json.loads(data[:-1])
        except (ValueError, RecursionError):
            called = None
        if not isinstance(called, dict):
            if self._transport is not None:
                cast("Transport", self._transport).refuse("a message that is no JSON object")
            return
        loop = asyncio.get_running_loop()
        taken_up = None
        if fds is not None:
            taken_up = loop.create_future()
            fds.reference_until_done(taken_up)
        first = not self._consumer_queue
        self._consumer_queue.append((partial(self.request_received, called, fds), taken_up))
        if first:
            loop.call_soon(self._process_queue, None)

    async def _encoded_call(
        self,
        method: Any,  # noqa: ANN401  as asyncvarlink has it
        signature: VarlinkMethodSignature,
        call: VarlinkMethodCall,
    ) -> None:
        """Send what the method returns as it is."""
        parameters = _parameters(signature, call, None)
        content = await method.__wrapped__(method.__self__, **parameters)
        if call.oneway:
            return
        transport = cast("Transport | None", self._transport)
        if transport is not None:
            sending = transport.send_message(b'{"parameters":' + content + b"}\0")
            sending.add_done_callback(self._on_message_sent)
            self._add_transfer(sending)

    def _stream_call(
        self,
        method: Any,  # noqa: ANN401  as asyncvarlink has it
        signature: VarlinkMethodSignature,
        call: VarlinkMethodCall,
        fds: FileDescriptorArray | None,
    ) -> asyncio.Future[None]:
        """Start a method that is a generator."""
        if call.method_name in self.ONLY_MORE and not call.more:
            raise ExpectedMore
        parameters = _parameters(signature, call, fds)
        # Not the decorator's wrapper, which wouldn't close the generator inside when it is closed.
        generator = method.__wrapped__(method.__self__, **parameters)
        task = asyncio.ensure_future(self._stream(generator, signature, call))
        if fds is not None:
            fds.reference_until_done(task)
        self._streaming = task
        task.add_done_callback(self._stream_ended)
        if self._peer_gone:
            task.cancel()
        return task

    def _stream_ended(self, _: asyncio.Future[None]) -> None:
        self._streaming = None

    async def _stream(
        self,
        generator: AsyncGenerator[AnnotatedResult, None],
        signature: VarlinkMethodSignature,
        call: VarlinkMethodCall,
    ) -> None:
        """Send what the generator yields, for as long as somebody is there to read it."""
        ended = False
        async with aclosing(generator):
            async for result in generator:
                if ended:
                    raise RuntimeError(f"{call.method} went on after its last reply")
                ended = not result.continues
                if call.oneway or (result.continues and not call.more):
                    continue
                if not await self._sent(result, signature):
                    return
        if not ended:
            raise RuntimeError(f"{call.method} ended without a last reply")

    async def _sent(self, result: AnnotatedResult, signature: VarlinkMethodSignature) -> bool:
        """Send a reply; returns whether it could be."""
        with FileDescriptorArray.new_managed() as fds:
            parameters = signature.return_type.tojson(
                result.parameters, {FileDescriptorVarlinkType: fds}
            )
            sending = self.send_reply(
                VarlinkMethodReply(
                    parameters, continues=result.continues, extensions=result.extensions
                ),
                [fd.fileno() for fd in fds],
                autoclose=False,
            )
            fds.reference_until_done(sending)
        # Not `await sending`: to be cancelled here would cancel the sending.
        await asyncio.wait({sending})
        return sending.exception() is None

    def send_reply(
        self,
        reply: VarlinkMethodReply,
        fds: list[int] | None = None,
        autoclose: bool = True,  # noqa: FBT001, FBT002  asyncvarlink's signature
    ) -> asyncio.Future[None]:
        """Queue a reply; its fds are duplicated, as theirs may be closed before it is sent."""
        transport = cast("Transport | None", self._transport)
        with FileDescriptorArray.new_managed() as own:
            if transport is not None:
                for fd in fds or ():
                    own.add(transport.own(_duplicate(fd)))
            sending = super().send_reply(reply, [fd.fileno() for fd in own], autoclose=False)
            own.reference_until_done(sending)
        if autoclose:
            for fd in fds or ():
                os.close(fd)
        return sending

    def _on_receiver_completes(
        self,
        backpressure_fut: asyncio.Future[None],
        oneway: bool,  # noqa: FBT001  as above
        call_fut: asyncio.Future[None],
    ) -> None:
        """Answer a failed call and take the next one; asyncvarlink knows no cancelled ones."""
        if call_fut.cancelled():
            if not self._peer_gone:
                self.handle_call_exception(asyncio.CancelledError("cancelled"), oneway)
            backpressure_fut.set_result(None)
        else:
            super()._on_receiver_completes(backpressure_fut, oneway, call_fut)

    def _on_message_sent(self, fut: asyncio.Future[None]) -> None:
        """Log why a reply couldn't be sent, unless the caller is just gone."""
        error = fut.exception()
        if error is not None and not isinstance(error, ConnectionError):
            log.warning("connection closed, as a reply could not be sent: %s", error)


def _duplicate(fd: int) -> int:
    """A descriptor to send; raises FdRejected where there is no room for it."""
    try:
        return os.dup(fd)
    except OSError as error:
        reason = f"the daemon has no room for file descriptors ({error.strerror})"
        raise FdRejected(index=-1, reason=reason) from error
